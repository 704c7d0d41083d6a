"""What is to be spoiled: a run of a few steps with its adapter and checkpoints, its base, and what comes of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from superlora_cli.models.embedded import ASSETS
from tests.forking.commands import Commands

BASE = ASSETS / "glyphs_vit.safetensors"
QUICK = ("train.steps=6", "eval.every=3", "train.checkpoint_every=2", "train.keep=3", "train.threads=1")


class Material:
    """Files made once and copied for every trial.

    Args:
        commands: carry out what makes them.
        place: an empty folder.

    Attributes:
        run: the folder of a finished run on `glyphs_vit`.
        adapter: its adapter file.
    """

    def __init__(self, commands: Commands, place: Path) -> None:
        self.commands, self.place = commands, place
        self._count = 0
        commands.right("train", "quickstart", *QUICK, "--out", "run", "--quiet", cwd=place)
        self.run = place / "run"
        self.adapter = self.run / "adapter.safetensors"

    @cached_property
    def other(self) -> Path:
        """Another adapter file of the same base."""
        self.commands.right("train", "quickstart", *QUICK, "seed=1", "--out", "other", "--quiet", cwd=self.place)
        return self.place / "other" / "adapter.safetensors"

    def fill(self, words: Sequence[str]) -> tuple[str, ...]:
        """Words of a command with the paths that `ADAPTER` and `RUN` stand for."""
        paths = {"ADAPTER": str(self.adapter), "RUN": str(self.run)}
        return tuple(paths.get(word, word) for word in words)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder for one trial."""
        self._count += 1
        path = self.place / f"trial-{self._count}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
