"""Every variant of the family, on two sets of targets: what the contract tests run over."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.from_base import FromBase, chosen, from_base, with_positions
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import TargetShape

EQUAL = [TargetShape(f"blocks.{i // 2}.attn.qkv[{i % 2}]", 12, 8, f"blocks.{i // 2}") for i in range(4)]
MIXED = [
    TargetShape("blocks.0.attn.q", 6, 5, "blocks.0"),
    TargetShape("blocks.0.attn.v", 6, 5, "blocks.0"),
    TargetShape("blocks.1.attn.q", 7, 4, "blocks.1"),
    TargetShape("blocks.1.conv", 4, 9, "blocks.1"),
]
KERNELS = [TargetShape("conv1", 3, 8, "", 4), TargetShape("conv2", 2, 12, "", 4)]

PLAIN: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "dense in 3 groups": {"order": 1, "groups": 3},
    "lora": {"method": "lora", "rank": 2},
    "lora, Kaiming": {"method": "lora", "rank": 2, "init": "lora"},
    "lora, from activations": {"method": "lora", "rank": 2, "init": "activations"},
    "2D regular, from gradients": {"rank": 2, "init": "gradient"},
    "lora, alpha": {"method": "lora", "rank": 2, "alpha": 8.0},
    "lora, rslora": {"method": "lora", "rank": 3, "alpha": 8.0, "scaling": "rslora"},
    "lora with a core": {"method": "lora", "rank": 2, "core": "dense"},
    "2D by layer": {"groups": "layer", "rank": 2},
    "2D by layer, not folded": {"groups": "layer", "fold": "none", "rank": 2},
    "2D, not folded": {"groups": 1, "fold": "none", "rank": 3},
    "2D, not folded, 3 groups": {"groups": 3, "fold": "none", "rank": 2},
    "2D regular": {"rank": 4},
    "2D regular, aligned": {"rank": 4, "align": 8},
    "2D regular, 4 groups": {"rank": 4, "groups": 4},
    "2D diagonal": {"rank": 3, "core": "diagonal"},
    "2D, one mode full": {"rank": ["full", 2]},
    "lorta 3D": {"method": "lorta", "rank": 2},
    "lorta 3D, ranks": {"method": "lorta", "rank": [3, 1, 2]},
    "lorta 3D by weight": {"method": "lorta", "groups": "weight", "rank": 2},
    "lorta 4D, 3 groups": {"method": "lorta", "order": 4, "groups": 3, "rank": 2},
    "lorta 5D": {"method": "lorta", "order": 5, "rank": 1, "alpha": 0.5},
    "CP 3D": {"order": 3, "rank": 2, "core": "identity"},
    "CP 5D diagonal": {"order": 5, "rank": 2, "core": "diagonal"},
    "lokr": {"method": "lokr", "rank": 1, "split_dim": 2},
    "lokr, low-rank left": {"method": "lokr", "rank": 1, "split_dim": 2, "left": "lowrank"},
    "lokr, 3 terms": {"method": "lokr", "rank": 1, "split_dim": 2, "terms": 3, "alpha": 3.0},
    "lonkr": {"method": "lonkr", "rank": 1, "split_dim": 2},
    "lonkr, 4 splits, 2 terms, 2 groups": {
        "method": "lonkr", "rank": 1, "split_dim": 2, "splits": 4, "terms": 2, "groups": 2,
    },
    "krona": {"method": "krona", "split_dim": 3},
    "krona by layer": {"method": "krona", "split_dim": 2, "groups": "layer"},
    "Kronecker of Tucker": {"method": "lorta", "splits": 2, "split_dim": 2, "rank": 1},
    "loha": {"method": "loha", "rank": 2},
    "3 Hadamard units": {"combine": "hadamard", "splits": 3, "rank": 2},
}  # fmt: skip

INNER: dict[str, dict[str, Any]] = {
    "unilora": {"method": "unilora", "rank": 2, "inner": {"dim": 9}},
    "unilora, rescaled": {"method": "unilora", "rank": 2, "inner": {"dim": 9}, "rescale": True, "init": "unit"},
    "2D of one-hot": {"rank": 3, "inner": {"dim": 7}},
    "2D of fastfood, 2 groups": {"rank": 3, "groups": 2, "inner": {"projection": "fastfood", "dim": 5, "per": "group"}},
    "lorta 3D of dense": {"method": "lorta", "rank": 2, "inner": {"projection": "dense", "dim": 6}, "alpha": 3.0},
    "lorta 4D of one-hot": {"method": "lorta", "order": 4, "rank": 2, "inner": {"dim": 11}},
    "CP 5D of one-hot": {"order": 5, "rank": 2, "core": "diagonal", "groups": 2, "inner": {"dim": 4}},
    "lokr of one-hot": {"method": "lokr", "rank": 1, "split_dim": 2, "inner": {"dim": 8}},
    "loha of fastfood": {"method": "loha", "rank": 2, "inner": {"projection": "fastfood", "dim": 12}},
    "linear of 2D of one-hot": {"rank": 2, "projection": "linear", "ratio": 0.5, "inner": {"dim": 6}},
    "nonlinear of 2D of one-hot": {"rank": 2, "projection": "nonlinear", "ratio": 0.5, "inner": {"dim": 6}},
    "vblora": {"method": "vblora", "rank": 2, "inner": {"dim": 3, "vectors": 4}},
    "lorta 3D of a bank": {"method": "lorta", "rank": 2, "inner": {"projection": "bank", "dim": 5, "topk": 3}},
    "nola": {"method": "nola", "rank": 2, "inner": {"dim": 3}},
    "lorta 3D, one θ a factor": {"method": "lorta", "rank": 2, "inner": {"dim": 4, "per": "factor"}},
}

FROZEN: dict[str, dict[str, Any]] = {
    "vera": {"method": "vera", "rank": 3},
    "vera folded, 2 groups": {"method": "vera", "rank": 3, "groups": 2, "fold": "regular"},
    "vera of fastfood": {"method": "vera", "rank": 3, "inner": {"projection": "fastfood", "dim": 5, "per": "group"}},
    "randlora": {"method": "randlora", "rank": 2},
    "randlora, diagonal left": {"method": "randlora", "rank": 2, "terms": 3, "diagonals": [1], "alpha": 4.0},
    "lora, A frozen": {"method": "lora", "rank": 2, "freeze": ["A2"]},
    "lorta 3D, core only": {"method": "lorta", "rank": 2, "freeze": ["planes"]},
    "lorta 3D, core frozen": {"method": "lorta", "rank": 2, "freeze": ["core"]},
    "lorta 4D, two diagonals": {"method": "lorta", "order": 4, "rank": 2, "freeze": ["A2", "A4"], "diagonals": [1, 2]},
    "lokr, left frozen": {"method": "lokr", "rank": 1, "split_dim": 2, "freeze": ["left"]},
    "lokr, right frozen": {"method": "lokr", "rank": 1, "split_dim": 2, "freeze": ["right"], "terms": 2},
    "lokr, right core only": {"method": "lokr", "rank": 1, "split_dim": 2, "core": "dense", "freeze": ["right.planes"]},
    "loha, one unit frozen": {"method": "loha", "rank": 2, "freeze": ["left"]},
    "sum of Tucker units": {"method": "lorta", "rank": 2, "terms": 3},
}

FROM_BASE: dict[str, dict[str, Any]] = {
    "lora_xs": {"method": "lora_xs", "rank": 2},
    "lora_xs folded": {"method": "lora_xs", "rank": 3, "groups": 2, "fold": "regular"},
    "lora_xs, 2 terms": {"method": "lora_xs", "rank": 2, "terms": 2},
    "tinylora": {"method": "tinylora", "inner": {"dim": 3}},
    "tinylora, one θ": {"method": "tinylora", "inner": {"dim": 3, "per": "all"}},
    "lorta 3D on singular vectors": {"method": "lorta", "rank": 2, "freeze": ["planes"], "frozen": "svd"},
    "lora, A from the base": {"method": "lora", "rank": 2, "freeze": ["A2"], "frozen": "svd"},
    "largest weights": {"method": "shira", "projection": "largest", "ratio": 0.2},
    "largest weights of 2 groups, from one-hot": {
        "groups": 2, "rank": 2, "projection": "largest", "ratio": 0.5, "inner": {"dim": 5}, "rescale": False,
    },
    "steepest elements": {"method": "shira", "projection": "steepest", "ratio": 0.2},
    "steepest elements of all weights, of 4 bits": {"order": 1, "projection": "steepest", "ratio": 0.1, "bits": 4},
    "steepest scales of rows": {"groups": 1, "order": 1, "multiply": "rows", "projection": "steepest", "ratio": 0.5},
}  # fmt: skip

MULTIPLIED: dict[str, dict[str, Any]] = {
    "hira": {"method": "hira", "rank": 2},
    "ia3": {"method": "ia3"},
    "oft": {"method": "oft", "block": 4},
    "dora": {"method": "dora", "rank": 2, "alpha": 0.5},
    "columns, low-rank over all weights": {"fold": "none", "rank": 2, "multiply": "columns"},
    "lorta 3D of rotations": {"method": "lorta", "rank": 2, "groups": 2, "multiply": "rotation", "block": 2},
    "magnitude of one-hot": {"rank": 2, "inner": {"dim": 6}, "multiply": "magnitude"},
    "linear of elementwise": {"rank": 2, "projection": "linear", "ratio": 0.5, "multiply": "elementwise"},
    "rows of 3 bits": {"order": 1, "multiply": "rows", "bits": 3},
}

STACKED: dict[str, dict[str, Any]] = {
    "fact_tk": {"method": "fact_tk", "rank": 2},
    "cara": {"method": "cara", "rank": 2},
    "fact_tk on singular vectors": {"method": "fact_tk", "rank": 2, "freeze": ["planes"], "frozen": "svd"},
    "fact_tk of one-hot": {"method": "fact_tk", "rank": 2, "inner": {"dim": 9}},
    "lotr": {"method": "lotr", "rank": 2},
    "lotr by layer": {"method": "lotr", "rank": 2, "groups": "layer"},
    "lotr, 2 groups": {"method": "lotr", "rank": 2, "groups": 2},
    "stack, Tucker": {"method": "lotr", "rank": [2, 3, 2]},
    "stack, CP": {"method": "lotr", "rank": [2, 2, 2], "core": "diagonal"},
    "lotr of 3 bits": {"method": "lotr", "rank": 2, "bits": 3},
}

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "atoms": {"method": "atoms", "rank": 2},
    "atoms of all weights, coefficients trained": {"groups": 1, "fold": "kernel", "rank": 3},
    "atoms with random coefficients": {"method": "atoms", "rank": 2, "frozen": "random", "groups": 2},
}

PROJECTED: dict[str, dict[str, Any]] = {
    f"{projection} {ratio:g} of {name}": {**knobs, "projection": projection, "ratio": ratio, "seed": 3}
    for projection, ratios in {
        "shuffle": (1.0,),
        "linear": (1.0, 0.5, 0.07),
        "linear_v2": (1.0, 0.1),
        "nonlinear": (1.0, 0.3),
        "nonlinear_v2": (1.0, 0.3),
        "onehot": (0.1,),
        "dense": (0.1,),
        "dft": (1.0, 0.1),
        "dct": (0.1,),
        "sparse": (0.1,),
    }.items()
    for ratio in ratios
    for name, knobs in {
        "dense, 2 groups": {"order": 1, "groups": 2},
        "dense by weight": {"method": "dense"},
        "2D": {"rank": 2, "groups": 2, "alpha": 4.0},
        "plain-scaled 2D": {"rank": 2, "rescale": False},
        "lorta 4D": {"method": "lorta", "order": 4, "rank": 1},
    }.items()
}

SPECTRAL: dict[str, dict[str, Any]] = {
    "fourierft": {"method": "fourierft", "ratio": 0.1},
    "fourierft, plain": {"method": "fourierft", "ratio": 0.1, "rescale": False, "alpha": 30.0},
    "dct by weight": {"method": "fourierft", "ratio": 0.1, "projection": "dct"},
    "dft of 2D not folded": {"rank": 2, "fold": "none", "projection": "dft", "ratio": 0.5},
}
QUANTISED: dict[str, dict[str, Any]] = {
    "lora of 4 bits": {"method": "lora", "rank": 2, "bits": 4},
    "lora of bfloat16": {"method": "lora", "rank": 2, "bits": 16},
    "2D of one-hot, 3 bits": {"rank": 3, "bits": 3, "inner": {"dim": 7}},
    "unilora of 2 bits": {"method": "unilora", "rank": 2, "inner": {"dim": 9}, "bits": 2},
    "lorta 3D of 1 bit, 2 groups": {"method": "lorta", "rank": 2, "groups": 2, "bits": 1},
    "lokr of 8 bits": {"method": "lokr", "rank": 1, "split_dim": 2, "bits": 8},
    "loha of 5 bits": {"method": "loha", "rank": 2, "bits": 5},
    "vera of 4 bits": {"method": "vera", "rank": 3, "bits": 4},
    "tinylora of 6 bits": {"method": "tinylora", "inner": {"dim": 3}, "bits": 6},
    "nonlinear of dense, 7 bits": {"order": 1, "projection": "nonlinear", "ratio": 0.3, "bits": 7},
    "fourierft of 4 bits": {"method": "fourierft", "ratio": 0.1, "bits": 4},
}
ACTIVATED: dict[str, dict[str, Any]] = {  # these have no ΔW
    "loda": {"method": "loda", "rank": 2},
    "loda, tanh, Kaiming": {"method": "loda", "rank": 2, "activation": "tanh", "init": "lora", "alpha": 8.0},
    "loda with a core, by layer": {"groups": "layer", "fold": "none", "core": "dense", "rank": 2, "activation": "relu"},
    "loda of all weights, bfloat16": {"fold": "none", "rank": 3, "activation": "leaky_relu", "bits": 16},
    "lotr, silu": {"method": "lotr", "rank": 2, "activation": "silu"},
    "fact_tk, relu": {"method": "fact_tk", "rank": 2, "activation": "relu"},
    "vera, gelu": {"method": "vera", "rank": 3, "activation": "gelu"},
    "nola, gelu": {"method": "nola", "rank": 2, "inner": {"dim": 3}, "activation": "gelu"},
    "lora_xs, relu": {"method": "lora_xs", "rank": 2, "activation": "relu"},
}
SINGLE = {**PLAIN, **INNER, **FROZEN, **FROM_BASE, **SPECTRAL, **MULTIPLIED, **QUANTISED}
VARIANTS = {
    **{name: (knobs, MIXED) for name, knobs in {**SINGLE, **PROJECTED}.items()},
    **{name: (knobs, KERNELS) for name, knobs in CONVOLUTIONS.items()},
    **{f"{name}, equal weights": (knobs, EQUAL) for name, knobs in {**SINGLE, **STACKED}.items()},
}


def values_of(knobs: dict[str, Any], prefix: str = "") -> set[str]:
    """What a row sets, as words: of numbers only that they are set, but for those that choose another path."""
    found: set[str] = set()
    for knob, value in knobs.items():
        name = prefix + knob
        if isinstance(value, dict):
            found |= values_of(value, f"{name}.")
        elif isinstance(value, bool | str) or name in {"order", "groups", "freeze", "diagonals", "combine"}:
            found.add(f"{name}={value}")
        else:
            found.add(f"{name}<1" if name == "ratio" and value < 1 else name)
    return found - {"seed"}


def covering(rows: dict[str, dict[str, Any]], together: int) -> list[str]:
    """A few of the rows that hold all that occurs in any: every `together` values that one row sets at once."""
    held = {
        name: {group for size in range(1, together + 1) for group in combinations(sorted(values_of(knobs)), size)}
        for name, knobs in rows.items()
    }
    left, taken = set().union(*held.values()), []
    while left:
        name = max(held, key=lambda row: len(held[row] & left))
        taken.append(name)
        left -= held[name]
    return taken


def config_of(knobs: dict[str, Any]) -> AdapterConfig:
    """The knobs of a table row as a configuration."""
    knobs = dict(knobs)
    return AdapterConfig.from_knobs(knobs.pop("method", None), **knobs)


def base_of(shapes: Plan) -> FromBase | None:
    """What a row takes from its base, and the positions it stores: of random weights and gradients."""
    if not (shapes.config.reads_base or shapes.config.places):
        return None
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(t.rows, t.columns, generator=generator) for t in shapes.targets]
    return placed(shapes, from_base(shapes, weights))


def placed(shapes: Plan, base: FromBase | None) -> FromBase | None:
    """With positions by random gradients where a row has such."""
    generator = torch.Generator().manual_seed(5)
    gradients = [torch.randn(x.rows, x.columns, generator=generator) for x in shapes.made]
    found = chosen(shapes, gradients) if shapes.config.places else {}
    by_bucket = {b.positions: torch.stack([found[g] for g in b.members]) for b in shapes.buckets if found}
    return with_positions(base, shapes, by_bucket)
