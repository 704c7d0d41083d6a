"""A folder of one's own images: a sub-folder per class, in `train`, `val` and `test` or all in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor
from torch.utils.data import Dataset

from superlora_cli.errors import UsageError

TRAIN, VALIDATION, TEST = ("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test",)
Labelled = tuple[str, int]  # a file and its class


class FolderImages(Dataset[tuple[Tensor, int]]):
    """Image files, decoded and transformed when they are read: ((3, S, S) float32, class)."""

    def __init__(self, files: Sequence[Labelled], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            cause = str(error).splitlines()[0]
            raise UsageError(f"no image that can be read: {cause}", where=path, hint="replace or remove it") from None
        return self.transform(rgb), label


def read_folder(root: Path) -> tuple[dict[str, int], list[Labelled], list[Labelled] | None, list[Labelled] | None]:
    """What lies in a folder of images.

    Returns:
        The classes by name, in natural order, and the files for training, for validation and for test; None where
        they are to be held out of the training images. A lone validation folder is the test split, as in ImageNet.

    Raises:
        UsageError: no images, images outside of a class, or a class without training images.
    """
    train = _existing(root, TRAIN)
    validation, test = _existing(root, VALIDATION), _existing(root, TEST)
    if test is None:
        validation, test = None, validation
    if train is None and test is not None:
        raise UsageError(f"holds {test.name}, but no train", where=str(root), hint="or class folders, without either")
    files, classes = find_images_and_targets(str(train or root))
    if not files or "" in classes:
        found = f"{sum(label == classes[''] for _, label in files)} images outside of a class" if files else "no images"
        raise UsageError(f"holds {found}", where=str(train or root), hint="a sub-folder of images per class")
    return classes, files, _labelled(validation, classes), _labelled(test, classes)


def _existing(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _labelled(folder: Path | None, classes: dict[str, int]) -> list[Labelled] | None:
    """The files of a split, labelled by the classes of the training images."""
    if folder is None:
        return None
    _, own = find_images_and_targets(str(folder))
    for name in own.keys() - classes.keys():
        raise UsageError(f"class '{name}' has no training images", where=str(folder), hint="add some, or remove it")
    files, _ = find_images_and_targets(str(folder), class_to_idx=classes)
    return files
