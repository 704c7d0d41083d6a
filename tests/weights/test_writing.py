"""Files written in pieces are the files that the library writes at once, and progress is told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from superlora_cli import progress
from superlora_cli.errors import UsageError
from superlora_cli.weights import header
from superlora_cli.weights.display import WritingDisplay
from superlora_cli.weights.reading import open_weights
from superlora_cli.weights.writing import Draft

TENSORS = {"b": torch.rand(6, 4), "a": torch.arange(6).view(3, 2), "c": torch.tensor(2.5, dtype=torch.float16)}


def layout() -> header.Header:
    return header.build([(n, header.NAMES[t.dtype], tuple(t.shape)) for n, t in TENSORS.items()], {"x": "y"})


def test_a_file_filled_in_any_order_is_what_the_library_reads(tmp_path: Path) -> None:
    told: list[int] = []
    with Draft(tmp_path / "final", told.append) as draft:
        draft.lay_out(tmp_path / "made", layout())
        draft.write("c", TENSORS["c"])
        draft.write("b", TENSORS["b"][4:], 4)
        draft.write("a", TENSORS["a"].T.contiguous().T)  # other strides
        draft.write("b", TENSORS["b"][:4])
    found = load_file(tmp_path / "made")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert sum(told) == sum(tensor.nbytes for tensor in TENSORS.values())
    save_file(TENSORS, tmp_path / "library", {"x": "y"})
    data = sum(tensor.nbytes for tensor in TENSORS.values())
    assert (tmp_path / "made").read_bytes()[-data:] == (tmp_path / "library").read_bytes()[-data:]


def test_a_copy_leaves_out_the_given_rows(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "source", {"x": "y"})
    with open_weights(tmp_path / "source") as source, Draft(tmp_path / "final") as draft:
        draft.lay_out(tmp_path / "made", source.shards[0].header)
        for name in source.names:
            draft.copy(name, source.shards[0], [(4, 5), (1, 3)] if name == "b" else ())
    found = load_file(tmp_path / "made")
    kept = TENSORS["b"].clone()
    kept[[1, 2, 4]] = 0  # holes
    assert torch.equal(found["b"], kept)
    assert torch.equal(found["a"], TENSORS["a"])
    assert torch.equal(found["c"], TENSORS["c"])


def test_a_source_truncated_while_it_is_read_is_reported(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "source")
    with open_weights(tmp_path / "source") as source, Draft(tmp_path / "final") as draft:
        shard = source.shards[0]
        (tmp_path / "source").write_bytes(shard.header.raw)
        draft.lay_out(tmp_path / "made", shard.header)
        with pytest.raises(UsageError, match="the file was truncated while it was read"):
            draft.copy("b", shard)
        with pytest.raises(UsageError, match="the file was truncated while it was read"):
            source.tensor("b")


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BETWEEN_LINES", -1)
    stream = io.StringIO()
    with WritingDisplay(Console(file=stream), "writing out.safetensors", 200) as shown:
        shown.advance(50)
        shown.advance(100)
    assert stream.getvalue() == "writing out.safetensors: 25%\nwriting out.safetensors: 75%\n"


def test_progress_is_a_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    with WritingDisplay(Console(file=stream, force_terminal=True, width=100), "writing out", 200_000) as shown:
        shown.advance(150_000)
    assert "150.0/200.0 kB" in stream.getvalue()
