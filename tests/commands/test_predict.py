"""Predicting refuses what is no number, and leaves the group of processes, however it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from superlora_cli.adapter import store
from superlora_cli.commands import assign, predict
from superlora_cli.errors import RunError, UsageError
from superlora_cli.training.processes import Processes

OUT = "out.csv"


def call_of(module: Any, result: Path, overrides: tuple[str, ...] = ()) -> Callable[[], dict[str, Any]]:
    """Predicts one image, by a run or an adapter file."""
    Image.new("RGB", (16, 16)).save("a.png")
    Path("t.csv").write_text(f"file,adapter\na.png,{result.stem}\n")
    if module is assign:
        return partial(assign.assign, Path("t.csv"), result.parent, Path(OUT), overrides)
    return partial(predict.predict, result, Path(), Path(OUT), overrides)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("module", [assign, predict])
def test_a_failure_leaves_the_group_of_processes_too(
    module: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunError("as if an image was lost")

    def end(own: Processes) -> None:
        ended.append(own)

    ended: list[Processes] = []
    monkeypatch.setattr(Processes, "end", end)
    monkeypatch.setattr(module, "with_bar", fail)
    with pytest.raises(RunError):
        call_of(module, trained)()
    assert len(ended) == 1


@pytest.mark.parametrize("module", [assign, predict])
def test_outputs_that_are_no_numbers_are_not_written(module: Any, adapter: Path) -> None:
    stored = store.load(adapter)
    huge = replace(stored, factors={name: tensor * 1e36 for name, tensor in stored.factors.items()})
    Path("huge.safetensors").write_bytes(huge.to_bytes())
    with pytest.raises(RunError, match=r"huge\.safetensors: the model gives NaN or Inf for 1 of 1 images"):
        call_of(module, Path("huge.safetensors").resolve())()
    assert not Path(OUT).exists()


@pytest.mark.parametrize("module", [assign, predict])
def test_a_file_that_appeared_meanwhile_is_not_overwritten(module: Any, trained: Path) -> None:
    Path(OUT).write_text("mine")
    with pytest.raises(UsageError, match="the file exists"):
        call_of(module, trained)()
    assert Path(OUT).read_text() == "mine"


@pytest.mark.parametrize("module", [assign, predict])
def test_lines_end_as_in_all_tables(module: Any, trained: Path) -> None:
    assert call_of(module, trained, ("eval.batch_size=1",))()["n"] == 1
    assert Path(OUT).read_bytes().count(b"\n") == 2
    assert b"\r" not in Path(OUT).read_bytes()


def test_an_image_alone_is_predicted_as_in_its_folder(trained: Path) -> None:
    Path("more").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16), "red").save(Path("more", name))
    predict.predict(trained, Path("more"), Path("all.csv"))
    assert predict.predict(trained, Path("more/b.png"), Path(OUT))["n"] == 1
    header, _, last = Path("all.csv").read_text().splitlines()
    assert Path(OUT).read_text().splitlines() == [header, last]
