"""torchvision's data sets, with timm's names (`torch/cifar100`): read from disk, or downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torchvision import datasets
from torchvision.datasets.utils import extract_archive

from superlora_cli.data.images import to_rgb
from superlora_cli.data.source import Pictures, Source
from superlora_cli.errors import UsageError

TIMEOUT = 15  # seconds without an answer
RAW = {
    "torch/mnist": "MNIST",
    "torch/fashion_mnist": "FashionMNIST",
    "torch/kmnist": "KMNIST",
    "torch/qmnist": "QMNIST",
}
TARS = {"torch/cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
        "torch/cifar100": ("cifar-100-python.tar.gz", "cifar-100-python")}  # archive, contents  # fmt: skip


class TorchvisionImages(Pictures):
    """A split of a torchvision data set."""

    def __init__(self, name: str, split: str, dataset: Any) -> None:
        self.name, self.split, self.dataset = name, split, dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, index: int) -> tuple[Image.Image, int]:
        try:
            image, label = self.dataset[index]
        except (OSError, SyntaxError, ValueError) as error:  # for data sets of files in folders
            raise UsageError(f"cannot be read: {error}", where=f"image {index} of {self.name}") from None
        return to_rgb(image), int(label)

    @cached_property
    def labels(self) -> Sequence[int]:
        stored = (getattr(self.dataset, name, None) for name in ("targets", "labels", "index"))
        rows = next(found for found in stored if found is not None)
        return [int(np.atleast_1d(row)[0]) for row in rows]  # rows of QMNIST and iNaturalist hold more than the class

    @cached_property
    def contents(self) -> Sequence[str]:
        """Digests of their positions, because the data set never changes."""
        places = (f"{self.name}\0{self.split}\0{index}" for index in range(len(self)))
        return [hashlib.sha256(place.encode()).hexdigest() for place in places]


def read_torchvision(name: str, root: str, *, download: bool, classes: int) -> Source:
    """The training images and the test (or validation) images of a data set.

    Args:
        name: e.g. `torch/cifar100`.
        root: folder that holds it, either unpacked or as the published archives, which are unpacked there.
        download: download it if it is missing.
        classes: its number of classes.

    Raises:
        UsageError: it is missing or damaged, or cannot be downloaded.
    """
    _unpack(name, Path(root))
    try:
        with _patient_for(TIMEOUT), contextlib.redirect_stdout(sys.stderr):  # older versions print
            train, test = (_open(name, root, split, download) for split in ("train", "validation"))
    except (RuntimeError, OSError, AssertionError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0]
        cause = re.sub(r"\W+you can (use|set) download=True.*", "", cause, flags=re.IGNORECASE).rstrip(".:")
        hint = f"put the data under '{root}', or set data.download=true (needs a network)"
        if download:
            hint = f"put the data under '{root}', or check the network"
        raise UsageError(f"cannot read data set '{name}': {cause}", where="data", hint=hint) from None
    fingerprint = hashlib.sha256(f"{name} {len(train)} {len(test)}".encode()).hexdigest()
    parts = TorchvisionImages(name, "train", train), None, TorchvisionImages(name, "test", test)
    return Source(*parts, class_names=_class_names(train, classes), fingerprint=fingerprint)


def _open(name: str, root: str, split: str, download: bool) -> Any:
    if name == "torch/svhn":  # timm's factory does not know it
        return datasets.SVHN(root, split="train" if split == "train" else "test", download=download)
    return create_dataset(name, root=root, split=split, download=download)


def _unpack(name: str, root: Path) -> None:
    """Unpack the archives of a data set that are in `root`, or in the folder where torchvision expects their contents.

    Raises:
        UsageError: one is damaged, or the folder cannot be written.
    """
    for archive, target in _archives(name, root):
        if target.exists():
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as folder:  # atomically
                extract_archive(str(archive), folder)
                (Path(folder) / target.name).rename(target)
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            command = f"tar -xzf {archive} -C {root}" if name in TARS else f"gunzip -c {archive} > {target}"
            raise UsageError(f"cannot be unpacked: {error}", where=str(archive), hint=command) from None


def _archives(name: str, root: Path) -> Iterator[tuple[Path, Path]]:
    """The archives of a data set, each with the path it is unpacked to."""
    if name in TARS:
        file, inside = TARS[name]
        if (root / file).is_file():
            yield root / file, root / inside
    elif name in RAW:
        home = root / RAW[name] / "raw"
        for archive in sorted(home.glob("*.gz")) or sorted(root.glob("*-idx*.gz")):
            yield archive, home / archive.stem


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """The data set's own class names, else their numbers. A name may be a tuple of synonyms, or be like "0 - zero"."""
    found = getattr(dataset, "classes", None) or range(count)
    names = [", ".join(name) if isinstance(name, tuple) else str(name) for name in found]
    return tuple(name.partition(" - ")[0] for name in names)


@contextlib.contextmanager
def _patient_for(seconds: float) -> Iterator[None]:
    """Limit the time to wait for the network, because torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
