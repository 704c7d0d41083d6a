"""What is drawn of training images depends on the seed and on what is read, and on nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from superlora_cli.data.augment import mixing
from superlora_cli.data.batches import StepSampler, training_batches
from superlora_cli.data.source import Look
from superlora_cli.data.splits import labels_of, load_splits
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.data.test_splits import write_images

LOOK = Look(16, (0.5,) * 3, (0.5,) * 3)
ALL = {"rand_augment": 9, "random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0, "balance": True}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images of a class, four of another."""
    write_images(tmp_path / "images", classes="ab", count=8)
    for number in range(4, 8):
        (tmp_path / f"images/b/{number}.png").unlink()
    return tmp_path / "images"


def read(name: str | Path, *, start: int = 0, stop: int = 4, workers: int = 0, **keys: Any) -> list[tuple[Tensor, ...]]:
    section = DataSection(name=str(name), validation=0.0, split="content", **keys)
    splits = load_splits(section, LOOK, seed=0)
    return list(
        training_batches(
            splits.train, 4, seed=3, start=start, stop=stop, workers=workers, pin=False, keyed=splits.augmented,
            classes=labels_of(splits.train) if section.balance else None, mix=mixing(section, 2),
        )
    )  # fmt: skip


def same(one: list[tuple[Tensor, ...]], other: list[tuple[Tensor, ...]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_workers_steps_before_and_draws_outside_change_nothing(augment: str, images: Path) -> None:
    whole = read(images, augment=augment, **ALL)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert same(read(images, augment=augment, workers=2, **ALL), whole)
    assert same(read(images, augment=augment, start=2, **ALL), whole[2:])


def test_outside_random_draws_are_unaffected(images: Path) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    found = []
    for reads in (False, True):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        if reads:
            read(images, augment="crop_flip", **ALL)
        found.append(draws())
    assert found[0] == found[1]


@pytest.mark.parametrize("key", ["rand_augment", "random_erasing", "mixup", "cutmix"])
def test_every_key_changes_images_differently(key: str, images: Path) -> None:
    wanted = {**ALL, "random_erasing": 1.0}[key]
    plain, changed = (torch.cat([x for x, _ in read(images, stop=3, augment="none", **keys)])
                      for keys in ({}, {key: wanted}))  # fmt: skip
    assert (plain != changed).any()
    again = torch.cat([x for x, _ in read(images, start=3, stop=6, augment="none", **{key: wanted})])
    assert not torch.equal(changed.mean((1, 2, 3)).sort().values, again.mean((1, 2, 3)).sort().values)


def test_labels_of_mixed_images_are_shares(images: Path) -> None:
    for _, labels in read(images, augment="none", mixup=1.0, cutmix=1.0):
        assert labels.shape == (4, 2)
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
    assert any(0 < share < 1 for _, labels in read(images, augment="none", mixup=1.0) for share in labels.flatten())


def test_balanced_classes_are_equally_frequent_and_repeated_images_augmented_differently() -> None:
    classes = [0] * 990 + [1] * 10
    keys = [key for batch in StepSampler(1000, 50, seed=0, start=0, stop=40, classes=classes) for key in batch]
    assert len(set(keys)) == len(keys) == 2000
    rare = sum(key[1] >= 990 for key in keys)
    assert 900 < rare < 1100


@pytest.mark.parametrize("name", ["images", "digits"])
@pytest.mark.parametrize("policy", ["rnd-m9", "augmix", "rand-x5", "rand-m9-mstdx"])
def test_what_timm_does_not_know_is_one_clear_error(
    policy: str, name: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    with pytest.raises(UsageError, match=r"data\.rand_augment: .*rand-m9-mstd0\.5"):
        read(name, rand_augment=policy)
