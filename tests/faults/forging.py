"""Adapters that are whole, with a checksum that fits, and say what no training would have written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from superlora_cli.weights.checksum import with_checksum
from superlora_cli.weights.small import safetensors_bytes
from tests.faults.spoiling import split

Forger = Callable[[dict[str, Tensor], dict[str, str], random.Random], None]

WILD: tuple[Any, ...] = (
    *(None, -1, 0, 1, 3, 7, 40, 1000, 10**6, 10**9, 10**30, 0.5, -0.5, 1e308, 1e-320, True),
    *("", "x", "full", "q", "\x1b[2J", "a\nb", "../../etc/passwd", "/dev/zero", "/etc/passwd"),
    *([], {}, [[]], [1], ["full"], [10**9] * 5, {"x": 1}),
)


def forge(forger: Forger, content: bytes, draw: random.Random) -> bytes:
    """An adapter file changed by `forger`, and signed again."""
    tensors, metadata = load(content), split(content)[0]["__metadata__"]
    forger(tensors, metadata, draw)
    return safetensors_bytes(tensors, with_checksum(tensors, metadata))


def knobs(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """A knob of the adapter."""
    config = json.loads(metadata["superlora.config"])
    _set(config, draw.choice([*config, "inner", "freeze", "frozen", "diagonals", "bogus"]), draw)
    metadata["superlora.config"] = json.dumps(config)


def recipe(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """A key of the recipe, at any depth."""
    content = json.loads(metadata["superlora.recipe"])
    here = content
    while True:
        key = draw.choice(list(here))
        if not isinstance(here[key], dict) or not here[key] or draw.random() < 0.2:
            break
        here = here[key]
    _set(here, key, draw)
    metadata["superlora.recipe"] = json.dumps(content)


def model(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """The recipe's model: a path, a size, an argument."""
    content = json.loads(metadata["superlora.recipe"])
    section = content["model"]
    files = ("/etc/passwd", "/dev/zero", "..", "/", "no\0thing", "\x1b[2J", "a\nb")
    called = ("local-dir:/etc", "local-dir:..", "hf-hub:../../x", "hf-hub:a/b", "/etc/passwd", "x" * 9999)
    arguments = ("embed_dim", "depth", "img_size", "num_heads", "patch_size", "x")
    rows = ([-1], [10**9], [10**30], [0] * 10_000, [])
    section |= draw.choice((
        {"checkpoint": draw.choice(files)},
        {"name": draw.choice(called)},
        {"kwargs": {draw.choice(arguments): draw.choice(WILD)}},
        {"head": {"select": draw.choice(rows)}},
        {"head": "new"},
    ))  # fmt: skip
    metadata["superlora.recipe"] = json.dumps(content)


def base(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """Name, digest and dtype of the base."""
    content = json.loads(metadata["superlora.base"])
    _set(content, draw.choice(list(content)), draw)
    metadata["superlora.base"] = json.dumps(content if draw.random() < 0.7 else draw.choice(WILD))


def targets(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """The patterns and their digest."""
    content = json.loads(metadata["superlora.targets"])
    patterns = ("*", "re:(a+)+$", "re:(", "q[", "q[0:99999999999]", "q[5:1]", "", "\x1b[2J", "k", "re:(.*)*(.*)*x")
    if draw.random() < 0.6:
        content["patterns"] = draw.choice(([draw.choice(patterns)], [draw.choice(WILD)], ["q"] * 3, "q"))
    else:
        _set(content, draw.choice(list(content)), draw)
    metadata["superlora.targets"] = json.dumps(content)


def classes(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """Names of classes, and what else is told."""
    key = draw.choice(("superlora.classes", "superlora.metrics", "superlora.origin", "superlora.prng"))
    metadata[key] = json.dumps(draw.choice((*WILD, ["a"], ["a"] * 100, ["\x1b[2J"] * 10, {"accuracy": "\x1b[2J"})))


def missing(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """An entry of the metadata is not there."""
    del metadata[draw.choice([key for key in metadata if key != "superlora.checksum"])]


def shapes(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """A factor of another shape, or of none."""
    name = draw.choice(list(tensors))
    own, none = tensors[name], torch.zeros(0)
    tensors[name] = draw.choice((own[:-1], own[None], own.flatten(), none, none.view(3, 0), torch.zeros(())))


def dtypes(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """A factor of another dtype."""
    name = draw.choice(list(tensors))
    kinds = (torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn)
    tensors[name] = tensors[name].to(draw.choice(kinds))


def names(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """A tensor too many or of another name; a head that no model has."""
    heads = ("fc.weight", "../../etc/passwd", "", "__class__", "blocks.0", "blocks.0.attn.qkv.weight", "head.weight")
    odd = draw.choice((*(f"head.{name}" for name in heads), "x", "", "\x1b[2J", "head.\x1b[2J", "a\nb"))
    tensors[odd] = tensors.pop(draw.choice(list(tensors))) if draw.random() < 0.5 else torch.ones(2, 2)


def not_finite(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """A factor holds NaN or Inf."""
    name = draw.choice(list(tensors))
    flat = tensors[name].clone().flatten()
    flat[draw.randrange(len(flat))] = draw.choice((float("nan"), float("inf"), -float("inf")))
    tensors[name] = flat.view(tensors[name].shape)


def overflowing(tensors: dict[str, Tensor], metadata: dict[str, str], draw: random.Random) -> None:
    """Finite factors whose product is not."""
    for name, tensor in tensors.items():
        tensors[name] = torch.full_like(tensor, 1e30)


FORGERIES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    kind: lambda content, draw, forger=forger: forge(forger, content, draw)  # type: ignore[misc]
    for kind, forger in {
        "wild knobs": knobs,
        "a wild recipe": recipe,
        "a wild model": model,
        "another base": base,
        "wild targets": targets,
        "wild names of classes": classes,
        "an entry missing": missing,
        "other shapes": shapes,
        "other dtypes": dtypes,
        "other tensors": names,
        "NaN and Inf": not_finite,
        "an update that overflows": overflowing,
    }.items()
}


def _set(content: dict[str, Any], key: str, draw: random.Random) -> None:
    if draw.random() < 0.15:
        content.pop(key, None)
    else:
        content[key] = draw.choice(WILD)
