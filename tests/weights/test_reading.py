"""Weights are read tensor by tensor, from one file or from shards, and what is wrong with a file is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.weights import header
from superlora_cli.weights.reading import open_weights
from tests.weights.checkpoints import save_shards

TENSORS = {
    "b.weight": torch.arange(12.0).view(3, 4),
    "a.weight": torch.arange(6).view(2, 3).bfloat16(),
    "scale": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 5),
    "mask": torch.tensor([True, False]),
}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """All of them in one file."""
    save_file(TENSORS, tmp_path / "one.safetensors", {"format": "pt", "by": "hand"})
    return tmp_path / "one.safetensors"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """All of them in two shards."""
    names = list(TENSORS)
    return save_shards(tmp_path / "big", [{n: TENSORS[n] for n in part} for part in (names[:2], names[2:])], {"a": "b"})


def read(path: Path) -> dict[str, Tensor]:
    with open_weights(path) as weights:
        return {name: weights.tensor(name) for name in weights.names}


def same(tensors: dict[str, Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(
        t.dtype == TENSORS[name].dtype and torch.equal(t, TENSORS[name]) for name, t in tensors.items()
    )


def test_a_file_its_folder_an_index_and_the_index_folder_are_read(single: Path, index: Path) -> None:
    assert all(same(read(path)) for path in (single, single.parent, index, index.parent))


def test_shapes_dtypes_and_metadata_are_known_before_anything_is_read(single: Path, index: Path) -> None:
    for path, metadata in ((single, {"format": "pt", "by": "hand"}), (index, {"a": "b"})):
        with open_weights(path) as weights:
            assert {n: (weights.shape(n), weights.dtype(n)) for n in weights.names} == {
                n: (tuple(t.shape), t.dtype) for n, t in TENSORS.items()
            }
            assert weights.metadata == metadata
            assert "a.weight" in weights
            assert "none" not in weights
    assert len({shard.path for shard in weights.shards}) == 2


def test_a_built_header_is_one_that_the_library_reads(tmp_path: Path) -> None:
    made = header.build([(n, header.NAMES[t.dtype], tuple(t.shape)) for n, t in TENSORS.items()], {"z": "1", "a": "2"})
    (tmp_path / "made.safetensors").write_bytes(made.raw + bytes(made.bytes - len(made.raw)))
    with open_weights(tmp_path / "made.safetensors") as weights:
        assert weights.metadata == {"z": "1", "a": "2"}
        assert all(weights.shape(n) == t.shape and weights.dtype(n) == t.dtype for n, t in TENSORS.items())
        assert all(weights.entry(n).start % t.itemsize == 0 for n, t in TENSORS.items())


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_file_is_refused_by_its_name(kept: int, single: Path) -> None:
    single.write_bytes(single.read_bytes()[:kept])
    with pytest.raises(UsageError, match="not a valid safetensors file") as error:
        read(single)
    assert error.value.where == str(single)


def test_missing_files_and_tensors_are_reported(tmp_path: Path, index: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "none.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no safetensors file"):
        read(tmp_path / "empty")
    shard = sorted(index.parent.glob("*.safetensors"))[1]
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="ghost is missing in"):
        read(index)
    shard.unlink()
    with pytest.raises(UsageError, match=f"the shard {shard.name}, which has .*, is missing"):
        read(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"a": "../../x"}}', '{"weight_map": {"a": 1}}'])
def test_a_foreign_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UsageError, match=r"not an index of shards|not weights"):
        read(tmp_path)


def test_several_files_without_an_index_are_not_guessed_at(single: Path) -> None:
    save_file({"a": torch.zeros(1)}, single.parent / "two.safetensors")
    with pytest.raises(UsageError, match="holds 2 files and no single index"):
        read(single.parent)
