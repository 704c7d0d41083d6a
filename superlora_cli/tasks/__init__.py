"""The tasks, by the name that `task:` has in a recipe. To list them imports nothing heavy."""

from __future__ import annotations

from superlora_cli.table import Later, Table
from superlora_cli.tasks.task import TaskKind


def _classification() -> TaskKind:
    from superlora_cli.tasks.classification import ClassificationKind

    return ClassificationKind()


def _diffusion() -> TaskKind:
    from superlora_cli.tasks.diffusion import DiffusionKind

    return DiffusionKind()


TASKS: Table[TaskKind] = Table("task", {"classification": Later(_classification), "diffusion": Later(_diffusion)})
