"""The recommended setting for a number of parameters, by the evidence in docs/real-base.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superlora_cli.adapter.config import RATE
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.analysis.budget import Knobs, Offer, largest
from superlora_cli.errors import UsageError

MEASURED = [TargetShape(str(number), 384, 384) for number in range(24)]  # what docs/real-base.md adapts
FOLDED: Knobs = {"order": 2, "groups": 1}
FOLDED_FROM = 3764  # parameters of rank 1 there; smaller budgets share them among the entries of a matrix of rank 8
SHARED: Knobs = {"order": 2, "rank": 8}


@dataclass(frozen=True)
class Recommendation:
    """An offer, a learning rate that was good in the evidence, and the equivalent number of parameters there."""

    offer: Offer
    lr: float
    like: int

    @property
    def adapter(self) -> str:
        """The recipe's section, in YAML's short form."""
        return "adapter: " + _flow(self.offer.knobs)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {"adapter": self.offer.knobs, "params": self.offer.plan.params, "lr": self.lr, "like": self.like}


def recommended(targets: Sequence[TargetShape], budget: int) -> Recommendation | None:
    """What to train with at most `budget` parameters on these targets; None if nothing fits, or if dense training does.

    A large budget goes to one square matrix of all weights, of the highest rank that fits; a small one is shared among
    the entries of such a matrix of rank 8 (one-hot F_in). Budgets are compared with those of the evidence in multiples
    of weight-wise LoRA of rank 1.
    """
    scale = _lora(MEASURED) / _lora(targets)
    if budget >= sum(target.elements for target in targets):
        return None
    offer = next(largest("recommended", FOLDED, targets, budget, []), None)
    if offer is None or offer.plan.params * scale < FOLDED_FROM:
        offer = _shared(targets, budget)
    return None if offer is None else Recommendation(offer, RATE, round(offer.plan.params * scale))


def _shared(targets: Sequence[TargetShape], dim: int) -> Offer | None:
    try:
        return Offer.of("recommended", SHARED | {"inner": {"projection": "onehot", "dim": dim}}, targets)
    except UsageError:
        return None


def _lora(targets: Sequence[TargetShape]) -> int:
    return _params({"method": "lora", "rank": 1}, targets)


def _params(knobs: Knobs, targets: Sequence[TargetShape]) -> int:
    return Offer.of("counted", knobs, targets).plan.params


def _flow(value: Any) -> str:
    """A value in YAML's short form.

    >>> _flow({"rank": 4, "rescale": False, "inner": {"dim": 9}})
    '{rank: 4, rescale: false, inner: {dim: 9}}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(own)}" for key, own in value.items()) + "}"
    return str(value).lower()
