"""Every variant of the family, on two sets of targets: what the contract tests run over."""

from __future__ import annotations

from typing import Any

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.targets import TargetShape

EQUAL = [TargetShape(f"blocks.{i // 2}.attn.qkv[{i % 2}]", 12, 8, f"blocks.{i // 2}") for i in range(4)]
MIXED = [
    TargetShape("blocks.0.attn.q", 6, 5, "blocks.0"),
    TargetShape("blocks.0.attn.v", 6, 5, "blocks.0"),
    TargetShape("blocks.1.attn.q", 7, 4, "blocks.1"),
    TargetShape("blocks.1.conv", 4, 9, "blocks.1"),
]

PLAIN: dict[str, dict[str, Any]] = {
    "dense": {"method": "dense"},
    "dense in 3 groups": {"order": 1, "groups": 3},
    "lora": {"method": "lora", "rank": 2},
    "lora, Kaiming": {"method": "lora", "rank": 2, "init": "lora"},
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

STACKED: dict[str, dict[str, Any]] = {
    "lotr": {"method": "lotr", "rank": 2},
    "lotr by layer": {"method": "lotr", "rank": 2, "groups": "layer"},
    "lotr, 2 groups": {"method": "lotr", "rank": 2, "groups": 2},
    "stack, Tucker": {"method": "lotr", "rank": [2, 3, 2]},
    "stack, CP": {"method": "lotr", "rank": [2, 2, 2], "core": "diagonal"},
}

PROJECTED: dict[str, dict[str, Any]] = {
    f"{projection} {ratio:g} of {name}": {**knobs, "projection": projection, "ratio": ratio, "seed": 3}
    for projection, ratios in {
        "shuffle": (1.0,),
        "linear": (1.0, 0.5, 0.07),
        "linear_v2": (1.0, 0.1),
        "nonlinear": (1.0, 0.3),
        "nonlinear_v2": (1.0, 0.3),
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

VARIANTS = {
    **{name: (knobs, MIXED) for name, knobs in {**PLAIN, **PROJECTED}.items()},
    **{f"{name}, equal weights": (knobs, EQUAL) for name, knobs in {**PLAIN, **STACKED}.items()},
}


def config_of(knobs: dict[str, Any]) -> AdapterConfig:
    """The knobs of a table row as a configuration."""
    knobs = dict(knobs)
    return AdapterConfig.from_knobs(knobs.pop("method", None), **knobs)
