"""The notebook for Python users runs: own loop, several adapters on one base, PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.test_examples import run, text


@pytest.mark.slow
def test_the_notebook_from_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = text(run("python", tmp_path, monkeypatch))
    assert "merged and adapted agree: True" in said
    assert "trainable params: 496" in said
    assert "loaded and merged agree: True" in said
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
