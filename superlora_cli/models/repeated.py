"""The base for one of many runs: read only once, but for every seed the same as if built for that run alone.

A seed affects a base in two ways: it determines the tensors that are in no file, such as a new classifier, and the
state of the random generator afterwards. Both come from building the base without its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from superlora_cli.cache import STORE, once
from superlora_cli.models.base import Base
from superlora_cli.models.build import build

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import ModelSection

BASES, SEEDS = 2, 16  # how many are cached: models, and results of seeds
OURS = 0x5EED_0F_0B0D1E5  # a seed that no file was created with


@dataclass(frozen=True)
class Known:
    """A base that has been read.

    Attributes:
        base: runs get copies of it.
        unread: the tensors that are in no file, and those that do not depend on the seed, such as ones and zeros; None
            if nothing is random.
    """

    base: Base
    unread: tuple[str, ...] | None


def build_seeded(section: ModelSection, seed: int, *, classes: int | None, image_size: int | None = None) -> Base:
    """`models.build.build` after `torch.manual_seed(seed)`; weights are read only once in a process with a cache.

    Raises:
        UsageError, MismatchError: as that.
    """

    def built(section: ModelSection, seed: int) -> Base:
        torch.manual_seed(seed)
        return build(section, classes=classes, image_size=image_size)

    if not STORE.keeps or section.quantize or not (section.pretrained or section.checkpoint):
        return built(section, seed)
    bare = section.model_copy(update={"pretrained": False, "checkpoint": None})

    def read() -> Known:
        before = torch.manual_seed(OURS).get_state()
        base = built(section, OURS)
        if torch.equal(before, torch.get_rng_state()):
            return Known(base, None)
        read, drawn = base.model.state_dict(), built(bare, OURS).model.state_dict()
        return Known(base, tuple(name for name in read if torch.equal(read[name], drawn[name].to(read[name].dtype))))

    def draw(names: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
        drawn = built(bare, seed).model.state_dict()
        return {name: drawn[name] for name in names}, torch.get_rng_state()

    key = section.model_dump_json(), classes, image_size, _files(section)
    known = once("base", key, read, most=BASES)
    base = copy.deepcopy(known.base)
    torch.manual_seed(seed)
    if known.unread is not None:
        tensors, behind = once("drawn", (key, seed), partial(draw, known.unread), most=SEEDS)
        base.model.load_state_dict(tensors, strict=False)
        torch.set_rng_state(behind)
    return base


def _files(section: ModelSection) -> Hashable:
    """Size and time of a checkpoint file; for an index, of all files in its folder, which may be its shards."""
    if section.checkpoint is None:
        return None
    path = Path(section.checkpoint)
    folder = path if path.is_dir() else path.parent if path.suffix == ".json" else None
    files = [path] if folder is None else sorted(folder.iterdir())
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists())
