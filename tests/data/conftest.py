"""Every test with a cache of its own, and data sets written as they lie on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superlora_cli.data.splits import Look, Splits, load_splits
from superlora_cli.recipe.schema import DataSection

LOOK = Look(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
QUICK = ("model.head=new", "train.steps=2", "train.batch_size=4", "eval.every=1", "--json")  # of `superlora train`


class Terminal(io.StringIO):
    """What is written on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's folder of caches."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def splits_of(name: object, **keys: object) -> Splits:
    """The splits of a data set, for images of 16 pixels."""
    return load_splits(DataSection.model_validate({"name": str(name), **keys}), LOOK, seed=0)


def sizes(splits: Splits) -> tuple[int, ...]:
    """The number of training, validation and test images."""
    return tuple(len(part) for part in (splits.train, splits.validation, splits.test))


def labels(images: object) -> list[int]:
    """The classes of a split, in order."""
    return [images[i][1] for i in range(len(images))]  # type: ignore[index,arg-type]


def picture(*key: int, side: int = 20) -> Image.Image:
    """An image that the numbers determine."""
    pixels = np.random.RandomState([*key]).randint(0, 256, (side, side + 4, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def write_folder(root: Path, *, classes: str = "abc", count: int = 4) -> None:
    """A folder of images, some for each class."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(number, i).save(root / name / f"{i}.png")
