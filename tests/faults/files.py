"""Bad adapters and bad bases, by every command that reads them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import torch
from safetensors.torch import load
from torch import Tensor

from tests.faults.forging import FORGERIES
from tests.faults.material import BASE, Material
from tests.faults.spoiling import BYTES
from tests.faults.trials import Trial, complaint, contents, outcome
from tests.forking.commands import Done

ADAPTER, OUT = "adapter.safetensors", "out.safetensors"
READERS = (
    ("inspect", ADAPTER),
    ("eval", ADAPTER),
    ("merge", ADAPTER, "--out", OUT, "--no-verify"),
    ("export", ADAPTER, "--to", "delta", "--out", OUT),
    ("compress", ADAPTER, "--bits", "3", "--out", OUT),
    ("inspect", ADAPTER, "--norms"),
    ("export", ADAPTER, "--to", "peft-lora", "--out", "peft"),
)
ADAPTED = (slice(0, 64), slice(128, 192))  # rows of q and v

NEVER, NEVER_USED = ("NaN and Inf", "other dtypes"), ("other shapes", "an update that overflows")

Words = tuple[str, ...]
Spoilers = Mapping[str, Callable[[bytes, random.Random], bytes]]


def adapters(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Adapters with spoiled bytes: refused, or the result is that of the whole file."""
    whole = material.adapter.read_bytes()
    right = {words: _read(material, whole, words) for words in READERS}
    for kind, words, content in _spoiled(BYTES, whole, draw, rounds):
        done, left = _read(material, content, words)
        fault = complaint(done) or _left_over(done, left)
        if done.code == 0 and (_said(done), left) != (_said(right[words][0]), right[words][1]):
            fault = fault or "accepted, with another result"
        yield Trial("adapters", kind, "the same result" if done.code == 0 else outcome(done), _about(fault, words))


def forged(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Adapters that say something senseless with a checksum that fits: refused, or taken for what they say."""
    whole = material.adapter.read_bytes()
    for kind, words, content in _spoiled(FORGERIES, whole, draw, rounds):
        done, left = _read(material, content, words)
        fault = complaint(done) or _left_over(done, left)
        if done.code == 0 and (kind in NEVER or (kind in NEVER_USED and words != READERS[0])):
            fault = fault or "accepted"
        yield Trial("adapters, forged", kind, outcome(done), _about(fault, words))


def bases(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Bases with spoiled bytes: refused, or the weights that are adapted come out right."""
    whole = BASE.read_bytes()
    words = ("merge", str(material.adapter), "--base", "base.safetensors", "--out", OUT, "--no-verify")
    right = _merge(material, whole, words)[1]
    for kind, _, content in _spoiled(BYTES, whole, draw, rounds):
        done, merged = _merge(material, content, words)
        said, fault = outcome(done), complaint(done)
        if done.code and merged:
            fault = fault or "a result although it was refused"
        elif done.code == 0:
            same = {name: name in merged and _same(merged[name], right[name]) for name in right}
            said = "the same result" if all(same.values()) else "a weight that is not adapted differs"
            for name in right:
                if name.endswith("qkv.weight") and not all(_same(merged[name][s], right[name][s]) for s in ADAPTED):
                    fault = fault or f"accepted, and {name} comes out wrong"
        yield Trial("bases", kind, said, _about(fault, words))


def _spoiled(spoilers: Spoilers, whole: bytes, draw: random.Random, rounds: int) -> Iterator[tuple[str, Words, bytes]]:
    """(Kind, command, content): every kind in turn, each with one command after the other."""
    first = draw.randrange(len(READERS))
    numbered = ((turn, kind) for turn in range(first, 10**9) for kind in spoilers)
    for index, (turn, kind) in enumerate(islice(numbered, rounds)):
        yield kind, READERS[(turn + index) % len(READERS)], spoilers[kind](whole, draw)


def _read(material: Material, content: bytes, words: Words) -> tuple[Done, dict[str, bytes]]:
    """How the command ended, and what it wrote."""
    with material.folder() as place:
        (place / ADAPTER).write_bytes(content)
        done = material.commands.run(*words, cwd=place)
        left = contents(place)
        assert left.pop(ADAPTER) == content
        return done, left


def _merge(material: Material, content: bytes, words: Words) -> tuple[Done, dict[str, Tensor]]:
    with material.folder() as place:
        (place / "base.safetensors").write_bytes(content)
        done = material.commands.run(*words, cwd=place)
        out = place / OUT
        return done, load(out.read_bytes()) if out.exists() else {}


def _said(done: Done) -> list[str]:
    """The lines of a result, but for the first, which may have the file's length."""
    return done.out.splitlines()[1:]


def _left_over(done: Done, left: Mapping[str, bytes]) -> str | None:
    return f"refused, and leaves {', '.join(left)}" if done.code and left else None


def _about(fault: str | None, words: Words) -> str | None:
    return f"superlora {' '.join(words)}: {fault}" if fault else None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
