"""A built base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Base:
    """A built base model, and the format of images that it expects, if it does.

    Attributes:
        model: the module, in training precision, on the CPU.
        architecture, arguments: `timm.create_model(architecture, **arguments)` builds the same module or, unless
            `by_timm`, the class `architecture(**arguments)`.
        image_size: in pixels; `mean`, `std`: of the normalisation, per channel, for images in [0, 1].
        trained_head: parameter names of a new classifier, which is trained with the adapter.
        task: the name of the task that it is made for.
        note: what the user should know, in one line: how the weights of a file were converted, what stays frozen.
    """

    model: nn.Module
    architecture: str
    arguments: Mapping[str, Any]
    image_size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    trained_head: tuple[str, ...] = field(default=())
    task: str = "classification"
    by_timm: bool = True
    note: str | None = None

    def include(self, patterns: Iterable[str]) -> None:
        """Make what target patterns name a part of `model`, where a base has more than its model; most have not."""

    @property
    def peft_task(self) -> str | None:
        """PEFT's name of what the model does, if it has one."""
        return None

    @property
    def call(self) -> str:
        """A line of Python that builds this model."""
        words = [f"{key}={value!r}" for key, value in self.arguments.items()]
        if not self.by_timm:
            return f"{self.architecture}({', '.join(words)})"
        return f"timm.create_model({', '.join([repr(self.architecture), *words])})"

    def loading(self, weights: Path) -> str:
        """A line of Python that builds it with the weights of a safetensors file."""
        if not self.by_timm:
            return f"model = {self.call}; model.load_state_dict(safetensors.torch.load_file({str(weights)!r}))"
        return f"{self.call[:-1]}, checkpoint_path={str(weights)!r})"
