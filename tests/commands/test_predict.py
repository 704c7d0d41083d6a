"""Predicting leaves the group of processes, however it ends."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from superlora_cli.commands import assign, predict
from superlora_cli.errors import RunError
from superlora_cli.training.processes import Processes


@pytest.mark.parametrize("module", [assign, predict])
def test_a_failure_leaves_the_group_of_processes_too(
    module: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RunError("as if an image was lost")

    def end(own: Processes) -> None:
        ended.append(own)

    ended: list[Processes] = []
    monkeypatch.setattr(Processes, "end", end)
    monkeypatch.setattr(module, "with_bar", fail)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"file,adapter\na.png,{trained.name}\n")
    if module is assign:
        call = partial(assign.assign, tmp_path / "t.csv", trained.parent, tmp_path / "out.csv")
    else:
        call = partial(predict.predict, trained, tmp_path, tmp_path / "out.csv")
    with pytest.raises(RunError):
        call()
    assert len(ended) == 1
