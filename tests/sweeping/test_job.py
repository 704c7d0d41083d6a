"""A run of a sweep is continued; it is started over only where it cannot be, and the log says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.errors import CannotResumeError, UsageError
from superlora_cli.recipe.load import load_recipe
from superlora_cli.sweeping import job as sweep
from superlora_cli.sweeping.work import Job
from superlora_cli.training.checkpoints import save_checkpoint

STEPS = ("train.steps=3", "train.checkpoint_every=1", "train.batch_size=4")


def job(folder: Path, *words: str) -> Job:
    return Job("a", str(folder), load_recipe("quickstart", (*STEPS, *words)).to_dict(), None, 1)


@pytest.mark.parametrize(
    ("error", "status", "tried"),
    [(UsageError, "failed", [True]), (CannotResumeError, "completed", [True, False])],
    ids=["failed", "refused"],
)
def test_a_run_that_failed_is_not_started_over(
    error: type[UsageError], status: str, tried: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []

    def train(*_: Any, resume: Path | None, **__: Any) -> None:
        resumed.append(resume is not None)
        if resume:
            raise error("Input/output error", where="a.png")

    monkeypatch.setattr(sweep, "train_run", train)
    (tmp_path / "recipe.yaml").touch()
    save_checkpoint(tmp_path / "checkpoints", 1, {}, {})
    assert sweep.carry_out(job(tmp_path)).status == status
    assert resumed == tried


@pytest.mark.slow
def test_a_run_that_is_started_over_says_why(tmp_path: Path) -> None:
    assert sweep.carry_out(replace(job(tmp_path), until=2)).status == "paused"
    assert sweep.carry_out(job(tmp_path, "adapter.alpha=1")).status == "completed"
    first, *_ = (tmp_path / "log.txt").read_text().splitlines()
    assert "started over: " in first
    assert "was trained with another adapter: adapter.alpha: 0.4 → 1.0" in first
