"""A sweep of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = """\
recipe: quickstart
set: {train.steps: 6, eval.every: 3, train.checkpoint_every: 3}
grid: {adapter.rank: [1, 2]}
seeds: [0, 1]
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes sweep.yaml in the current folder, an empty one, and gives its path relative to it."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> Path:
        Path("sweep.yaml").write_text(text)
        return Path("sweep.yaml")

    return to_file
