"""Learning what a finished run answers, in place of the labels or beside them: distillation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from superlora_cli.adapter import store
from superlora_cli.errors import UsageError
from superlora_cli.opening.build import Built, build_from_file, shapes_from_file
from superlora_cli.opening.model_file import read_model
from superlora_cli.opening.results import resolve_result
from superlora_cli.recipe.schema import TeacherSection
from superlora_cli.training.processes import Processes

KEY = "train.teacher.run"
Distance = Callable[[Tensor, Tensor], Tensor]  # logits (n, C) of the trained model and of the teacher → (n,)


class Teacher:
    """A finished run, with whose answers those of the trained model are compared.

    G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, 2015, section 2.

    Attributes:
        built: the run's base with its adapter.

    Raises:
        UsageError: there is no such run, as `build_from_file`, or the run is of another task.
    """

    def __init__(self, section: TeacherSection, task: str) -> None:
        self.section = section
        self.built: Built = build_from_file(_file(section))
        if (other := self.built.recipe.task) != task:
            raise UsageError(f"{section.run} is a run of the task {other}", where=KEY, hint=f"give one of {task}")

    @property
    def told(self) -> str:
        """What to know of it as training starts."""
        return f"learns what {self.section.run} answers ({self.built.recipe.model.name})"

    def place(self, processes: Processes) -> None:
        """Move the model to the device of training."""
        processes.place(self.built.model).eval().requires_grad_(False)

    @torch.no_grad()
    def answers(self, ask: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """The logits (n, C) float32 that `ask`, the model or what calls it, gives for inputs."""
        return ask(*inputs).float()

    def loss(self, labelled: Tensor, outputs: Tensor, told: Tensor, distance: Distance) -> Tensor:
        """(n,) w times the softened distance of the logits (n, C), plus 1 − w times the loss of the labels, each (n,)
        or their mean."""
        weight = self.section.weight
        return weight * softened(outputs, told, self.section.temperature, distance) + (1 - weight) * labelled


def bytes_of(section: TeacherSection) -> int:
    """Bytes of a teacher's weights, for the estimate of memory; 0 where its base cannot be built here.

    Raises:
        UsageError: as `resolve_result` and `store.load`.
    """
    file = _file(section)
    if read_model(file) is not None:
        return file.stat().st_size
    known = shapes_from_file(store.load(file), file)
    return sum(tensor.nbytes for tensor in known[1].model.state_dict().values()) if known else 0


def _file(section: TeacherSection) -> Path:
    try:
        return resolve_result(Path(section.run))
    except UsageError as error:
        where, hint = f"{KEY}={section.run}", f"{error.hint}, or learn from the labels: train.teacher=null"
        raise UsageError(error.message, where=where, hint=hint) from None


def softened(outputs: Tensor, told: Tensor, temperature: float, distance: Distance) -> Tensor:
    """(n,) T² times the distance of logits (n, C), both divided by T."""
    return temperature**2 * distance(outputs / temperature, told / temperature)


def divergence(outputs: Tensor, told: Tensor) -> Tensor:
    """(n,) KL(teacher ‖ model) of the softmax of logits (n, C)."""
    found = functional.kl_div(outputs.log_softmax(-1), told.log_softmax(-1), reduction="none", log_target=True)
    return found.sum(-1)


def binary_divergence(outputs: Tensor, told: Tensor) -> Tensor:
    """(n,) mean KL(teacher ‖ model) of the yes or no of every output, from logits (n, C)."""
    wanted = told.sigmoid()
    cross, own = (
        functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none") for logits in (outputs, told)
    )
    return (cross - own).mean(-1)
