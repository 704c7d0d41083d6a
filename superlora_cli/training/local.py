"""Local LoRA (Key et al. 2023): groups of layers are trained one after another, from the first to the last.

Only one group's factors have gradients and an optimizer's state, and layers before it keep no activations. What a
group has been trained on does not change afterwards, because the layers before it are finished.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from superlora_cli.adapter.stages import KEY, stages
from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from superlora_cli.adapter.attach import SuperLora
    from superlora_cli.recipe.schema import TrainSection


class Turn(NamedTuple):
    """The turn of one group: its trained numbers, which share their memory with the adapter's, and its steps."""

    parameters: dict[str, nn.Parameter]
    start: int
    stop: int


class Local:
    """The turns of a run. Every group has an equal share of the steps."""

    def __init__(self, adapter: SuperLora, groups: int, length: int) -> None:
        self.adapter = adapter
        self.stages = stages(adapter.plan, groups)
        self.ends = [length * (index + 1) // groups for index in range(groups)]
        self._rows: list[tuple[nn.Parameter, nn.Parameter, int, int]] = []

    @classmethod
    def of(cls, train: TrainSection, adapter: SuperLora | None) -> Local | None:
        """As a recipe asks for it; None if it does not.

        Raises:
            UsageError: there is no adapter that can be trained in so many groups, or something else cannot be.
        """
        if train.local is None:
            return None
        groups = train.local.groups
        if adapter is None or not adapter.targets:
            raise UsageError("needs an adapter with factors", where=KEY, hint="leave it out")
        if adapter.also:
            raise UsageError("`adapter.also` trains tensors of all layers", where=KEY, hint="leave one of them out")
        if train.patience is not None:
            raise UsageError("with `train.patience`, groups might never be trained", where=KEY, hint="leave it out")
        length = groups if train.steps is None else train.steps  # epochs are not yet counted in steps
        if length < groups:
            raise UsageError(f"{groups} groups in {length} steps", where=f"{KEY}.groups", hint=f"at most {length}")
        return cls(adapter, groups, length)

    @property
    def told(self) -> str:
        """`layers are trained one after another: blocks.0 to blocks.2 until step 100, …`."""
        names = [" to ".join(dict.fromkeys((stage.layers[0], stage.layers[-1]))) for stage in self.stages]
        turns = (f"{name} until step {end}" for name, end in zip(names, self.ends, strict=True))
        return f"layers are trained one after another: {', '.join(turns)}"

    def enter(self, step: int) -> Turn:
        """From now on, only the group whose turn it is after `step` steps gets gradients."""
        index = min(bisect_right(self.ends, step), len(self.ends) - 1)
        stage, found = self.stages[index], {}
        self.adapter.tuned, self._rows = frozenset(stage.targets), []
        for name, first, stop in stage.rows:
            whole = self.adapter.factors[name]
            own = found[f"{name}[{first}:{stop}]"] = nn.Parameter(whole.detach()[first:stop])
            self._rows.append((own, whole, first, stop))
        return Turn(found, self.ends[index - 1] if index else 0, self.ends[index])

    def collect(self) -> None:
        """Give the parameters of this turn their gradients: the same rows of the adapter's."""
        for own, whole, first, stop in self._rows:
            own.grad = None if whole.grad is None else whole.grad[first:stop]
