"""A language model's logits at some positions only; those of a large vocabulary are most of a step's memory."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 0.01  # of the largest logit, in half precision too; another text changes much more
CALLED_WITH = {"position_ids", "use_cache"}  # arguments of some models only


class Logits:
    """The logits of a model: the layer that makes them is given the chosen positions only, and the model's own forward
    does the rest, such as scaling or soft-capping.

    If that is not what it does with all positions, they are chosen afterwards.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.chosen: Tensor | None = None
        self._known = CALLED_WITH & known_arguments(model)
        head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
        self._hook = None if head is None else head.register_forward_pre_hook(self._choose)

    def at(self, ids: Tensor, positions: Tensor, chosen: Tensor) -> Tensor:
        """(n, V) at `chosen` (n,) of the flattened ids (B, L); positions (B, L) as the model counts them."""
        if self._hook is None:
            return self._called(ids, positions)[chosen]
        self.chosen = chosen
        try:
            return self._called(ids, positions)
        finally:
            self.chosen = None

    def _called(self, ids: Tensor, positions: Tensor) -> Tensor:
        given: dict[str, Any] = {"position_ids": positions, "use_cache": False}
        found: Tensor = self.model(ids, **{name: given[name] for name in self._known}).logits
        return found.flatten(0, 1)

    @torch.no_grad()
    def try_out(self) -> None:
        """Choose positions afterwards from now on, if the layer cannot be given some of them."""
        self.model.eval()
        ids, positions = torch.tensor([[1, 2, 3], [3, 1, 2]]), torch.arange(3).expand(2, 3)
        whole = self._called(ids, positions).float()
        some = torch.tensor([1, 5])
        try:
            found = self.at(ids, positions, some).float()
            same = found.shape == whole[some].shape
            same = same and bool((found - whole[some]).abs().max() <= ROUNDING * whole.abs().max())
        except (RuntimeError, IndexError, ValueError):
            same = False
        if not same and self._hook:
            self._hook.remove()
            self._hook = None

    def _choose(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.chosen is None:
            return None
        hidden, *others = given
        return (hidden.flatten(0, -2)[self.chosen][None], *others)


def known_arguments(model: nn.Module) -> set[str]:
    """The names of the arguments of a model."""
    return set(inspect.signature(model.forward).parameters)
