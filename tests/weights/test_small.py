"""Equal content is equal bytes; what is no whole file is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from superlora_cli.errors import UsageError
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(3)}


def test_safetensors_bytes_depend_on_the_content_alone() -> None:
    metadata = {f"key{i}": str(i) for i in range(20)}
    shuffled = dict(sorted(metadata.items(), key=lambda item: hash(item[0][::-1])))
    first = safetensors_bytes(TENSORS, metadata)
    assert all(safetensors_bytes(TENSORS, metadata) == first for _ in range(5))
    assert safetensors_bytes(dict(reversed(TENSORS.items())), shuffled) == first
    assert safetensors_bytes(TENSORS, {**metadata, "key0": "other"}) != first


def test_the_safetensors_library_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(TENSORS, {"format": "pt", "ρ": "0.07"}))
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0  # the data stay aligned
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "ρ": "0.07"}


def test_tensors_in_any_memory_layout_are_written_as_they_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor = torch.arange(6.0).reshape(2, 3).T
    path.write_bytes(safetensors_bytes({"t": tensor}, {}))
    tensors, _ = read_safetensors(path)
    assert torch.equal(tensors["t"], tensor)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_safetensors_file_is_refused_with_its_name(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(TENSORS, {"format": "pt"})[:length])
    with pytest.raises(UsageError, match=r"x\.safetensors: not a valid safetensors file"):
        read_safetensors(path)


def test_a_file_replaced_while_it_is_read_is_the_one_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "other"
    for n, file in enumerate((path, other)):
        file.write_bytes(save({"a": torch.full((4,), float(n))}, {"n": str(n)}))
    read = torch.UntypedStorage.from_file

    def replaced(*words: Any, **named: Any) -> torch.UntypedStorage:
        other.replace(path)
        return read(*words, **named)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", replaced)  # the second time that safe_open opens it
    tensors, metadata = read_safetensors(path)
    assert tensors["a"].tolist() == [float(metadata["n"])] * 4
