"""Well-known sets are read in their own formats on disk, and say in one line what is missing."""

from __future__ import annotations

import gzip
import pickle
import shutil
import socket
import tarfile
import time
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from scipy.io import savemat

from superlora_cli.data.known import TORCHVISION as CLASSES
from superlora_cli.data.splits import class_count
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection
from tests.conftest import Cli
from tests.data.conftest import QUICK, labels, sizes, splits_of


def colours(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, *shape)).astype(np.uint8)


def write_cifar(root: Path, fine: bool) -> None:
    """CIFAR's pickles: rows of 3,072 bytes, the classes beside them, the names in the meta file."""
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    count = 100 if fine else 10
    files = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for number, name in enumerate(files):
        numbers = [i % count for i in range(count)]
        content = {"data": colours(count, 3072, seed=number), "fine_labels" if fine else "labels": numbers}
        (folder / name).write_bytes(pickle.dumps(content))
    names = [f"thing {i}" for i in range(count)]
    meta = {"fine_label_names" if fine else "label_names": names}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(pickle.dumps(meta))


def write_mnist(root: Path, folder: str = "MNIST") -> None:
    """MNIST's idx files: a magic number, the sizes, the bytes."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", 20), ("t10k", 10)):
        head = [np.array(words, ">i4").tobytes() for words in ([2051, n, 28, 28], [2049, n])]
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head[0] + colours(n, 28, 28).tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head[1] + bytes(i % 10 for i in range(n)))


def write_svhn(root: Path) -> None:
    """SVHN's MATLAB files, in which 10 stands for the digit 0."""
    for split, n in (("train", 20), ("test", 10)):
        x = colours(32, 32, 3, n)
        savemat(root / f"{split}_32x32.mat", {"X": x, "y": np.array([[i % 10 + 1] for i in range(n)])})


@pytest.fixture(autouse=True)
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are small ones of the same format."""
    for module in (tv.cifar, tv.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.parametrize(("fine", "name", "n"), [(False, "torch/cifar10", 50), (True, "torch/cifar100", 100)])
def test_cifar(fine: bool, name: str, n: int, tmp_path: Path) -> None:
    write_cifar(tmp_path, fine)
    splits = splits_of(name, root=str(tmp_path), validation=0.1, augment="none")
    classes = CLASSES[name]
    assert splits.class_names == tuple(f"thing {i}" for i in range(classes))
    assert splits.classes == classes
    assert sizes(splits) == (n - n // 10, n // 10, classes)
    assert labels(splits.test) == list(range(classes))
    raw = colours(classes, 3072, seed=1 if fine else 5)[3].reshape(3, 32, 32)
    mean = torch.from_numpy(raw).float().view(3, 16, 2, 16, 2).mean((2, 4)) / 127.5 - 1
    assert (splits.test[3][0] - mean).abs().mean() < 0.2  # 32 → 16 pixels, by another filter


def test_held_out_images_are_not_trained_on_and_the_same_every_time(tmp_path: Path) -> None:
    write_cifar(tmp_path, fine=False)
    first, second = (splits_of("torch/cifar10", root=str(tmp_path), validation=0.2) for _ in range(2))
    train, held_out = (set(part.indices) for part in (first.train, first.validation))  # type: ignore[attr-defined]
    assert not train & held_out
    assert train | held_out == set(range(50))
    assert held_out == set(second.validation.indices)  # type: ignore[attr-defined]
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(
    ("name", "folder", "names"),
    [("mnist", "MNIST", tuple("0123456789")), ("kmnist", "KMNIST", tuple(tv.KMNIST.classes)),
     ("fashion_mnist", "FashionMNIST", tuple(tv.FashionMNIST.classes))],
)  # fmt: skip
def test_grey_sets_have_three_channels_and_names(name: str, folder: str, names: Any, tmp_path: Path) -> None:
    write_mnist(tmp_path, folder)
    splits = splits_of(f"torch/{name}", root=str(tmp_path))
    assert splits.class_names == names
    assert sizes(splits) == (18, 2, 10)
    image, label = splits.test[7]
    assert image.shape == (3, 16, 16)
    assert torch.equal(image[0], image[2])
    assert label == 7


def test_svhn(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    splits = splits_of("torch/svhn", root=str(tmp_path))
    assert splits.class_names == tuple("0123456789")
    assert labels(splits.test) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cifar10", lambda root: write_cifar(root, fine=False)),
        ("mnist", write_mnist),
        ("svhn", write_svhn),
    ],
)
def test_classes_are_known_without_decoding_and_held_out_alike(name: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    held_out = splits_of(f"torch/{name}", root=str(tmp_path), validation=0.5, split="content").validation
    known = held_out.dataset.labels  # type: ignore[attr-defined]
    assert [known[index] for index in held_out.indices] == labels(held_out) != []  # type: ignore[attr-defined]


def pack(path: Path) -> None:
    """A file as it is published."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("beside", [True, False])
def test_archives_are_unpacked(beside: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    wanted = {path.name: path.read_bytes() for path in raw.iterdir()}
    for path in list(raw.iterdir()):
        pack(path)
        if not beside:
            (raw / f"{path.name}.gz").rename(tmp_path / f"{path.name}.gz")
    assert sizes(splits_of("torch/mnist", root=str(tmp_path))) == (18, 2, 10)
    assert {path.name: path.read_bytes() for path in raw.iterdir() if path.suffix != ".gz"} == wanted
    write_cifar(tmp_path, fine=False)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    assert sum(sizes(splits_of("torch/cifar10", root=str(tmp_path)))) == 60


def test_an_archive_that_cannot_be_unpacked_is_named_with_the_command(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    pack(raw / "train-images-idx3-ubyte")
    archive = raw / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(UsageError) as caught:
        splits_of("torch/mnist", root=str(tmp_path))
    assert str(caught.value).startswith(f"{archive}: cannot be unpacked: ")
    assert f"(gunzip -c {archive} > {raw / 'train-images-idx3-ubyte'})" in str(caught.value)
    assert sorted(path.name for path in raw.iterdir() if "train-images" in path.name) == [archive.name]


def test_training_on_cifar100(cli: Cli, tmp_path: Path) -> None:
    write_cifar(tmp_path / "data", fine=True)
    result = cli("train", "quickstart", "data.name=torch/cifar100", *QUICK)
    assert result.code == 0, result.err
    assert result.json()["params"]["head"] == 100 * 64 + 100


@pytest.mark.parametrize("name", [name for name in CLASSES if name.startswith("torch/")])
def test_missing_parts_are_one_line_errors(name: str, tmp_path: Path) -> None:
    assert class_count(DataSection(name=name)) == CLASSES[name]
    with pytest.raises(UsageError) as caught:
        splits_of(name, root=str(tmp_path))
    line = str(caught.value)
    assert line.startswith(f"data: cannot read data set '{name}': ")
    assert line.endswith(f"(put the data under '{tmp_path}', or set data.download=true (needs a network))")
    assert "\n" not in line
    assert "download=True" not in line


@pytest.mark.parametrize("name", ["torch/cifar100", "torch/svhn", "torch/mnist"])
def test_without_a_network_a_download_ends_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        limits.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    started = time.monotonic()
    with pytest.raises(UsageError) as caught:
        splits_of(name, root=str(tmp_path), download=True)
    assert time.monotonic() - started < 10
    assert set(limits) == {15}
    assert socket.getdefaulttimeout() is None
    assert str(caught.value).endswith(f"(put the data under '{tmp_path}', or check the network)")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["torch/cifar1000", "pets/none", "hfids/beans", "tfds/mnist"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown data set '{name}'"):
        splits_of(name)
