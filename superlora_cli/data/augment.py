"""Random augmentation of training images: crops, colours, erased parts, and mixing of images in a batch.

timm and torchvision draw from the global generators of Python, numpy and torch. Inside `set_aside` all three can be
seeded by whatever the draws should depend on, without any effect outside.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose, v2

from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from superlora_cli.data.source import Look
    from superlora_cli.recipe.schema import DataSection

Transform = Callable[[Any], Any]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BY_MAGNITUDE = "rand-m{}-mstd0.5"
POLICY = re.compile(r"rand(-(m|n|p|inc|mstd|mmax)[\d.]+|-t\w+)*")  # timm ignores parts that it does not know


@contextmanager
def set_aside() -> Iterator[None]:
    """Restore the global generators on leaving, whatever is drawn inside."""
    python, numbers, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(state)


def seed_by(*key: Hashable) -> None:
    """Seed the global generators by `key`, a tuple of integers."""
    mixed = hash(key) % 2**63
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed seeds GPUs too, and takes 0.5 ms for it


def stages(section: DataSection, look: Look) -> tuple[Transform, Transform, Transform]:
    """Three transforms from an RGB image to a training sample: crop and flip; RandAugment; to a tensor, parts erased.

    Raises:
        UsageError: timm does not understand `data.rand_augment`.
    """
    policy = section.rand_augment
    if isinstance(policy, int):
        policy = BY_MAGNITUDE.format(policy)
    try:
        if policy is not None and not POLICY.fullmatch(policy):
            raise ValueError
        made: tuple[Transform, Transform, Transform] = create_transform(
            input_size=(3, look.size, look.size), mean=look.mean, std=look.std, is_training=True, auto_augment=policy,
            color_jitter=0.0, re_prob=section.random_erasing or 0.0, re_mode="pixel", separate=True,
        )  # fmt: skip
    except (AssertionError, ValueError, KeyError):
        hint = "a magnitude from 0 to 10, or timm's notation: rand-m9-mstd0.5"
        raise UsageError(f"timm has no RandAugment '{policy}'", where="data.rand_augment", hint=hint) from None
    return made


def changes_images(section: DataSection) -> bool:
    """Whether images are augmented other than by `data.augment`."""
    return section.rand_augment is not None or bool(section.random_erasing)


def training_transform(section: DataSection, look: Look, plain: Compose) -> Transform:
    """The transform from an RGB image of any size to a training sample; `plain` is that of evaluation."""
    if section.augment == "none" and not changes_images(section):
        return plain
    cut, change, finish = stages(section, look)
    if section.augment == "none":
        cut = Compose(plain.transforms[:-2])  # without the last two: to a tensor, normalise
    return Compose([cut, change, finish])


def mixing(section: DataSection, outputs: int) -> Mix | None:
    """The mixing of a batch by `data.mixup` or `data.cutmix`, chosen at random if both are set; None without them.

    Args:
        outputs: of the model. Class numbers (B,) become shares of every output (B, outputs) float32.
    """
    kinds: list[Any] = []
    if section.mixup is not None:
        kinds.append(v2.MixUp(alpha=section.mixup, num_classes=outputs))
    if section.cutmix is not None:
        kinds.append(v2.CutMix(alpha=section.cutmix, num_classes=outputs))
    return v2.RandomChoice(kinds) if kinds else None
