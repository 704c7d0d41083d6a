"""The recommended setting for a number of parameters or bytes, by docs/real-base.md and docs/bytes.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from superlora_cli.adapter.config import RATE, usual_rate
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.analysis.budget import Knobs, Offer
from superlora_cli.errors import UsageError

MEASURED = [TargetShape(str(number), 384, 384) for number in range(24)]  # what docs/real-base.md adapts
MOST = 16384  # parameters there; larger budgets gained nothing
SHARED: Knobs = {"order": 2, "rank": 8}
BITS = 3  # what is good in docs/bytes.md


@dataclass(frozen=True)
class Recommendation:
    """An offer, a learning rate that was good in the evidence, and the equivalent number of parameters there."""

    offer: Offer
    lr: float
    like: int | None = None

    @property
    def adapter(self) -> str:
        """The recipe's section, in YAML's short form."""
        return "adapter: " + _flow(self.offer.knobs)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        like = {} if self.like is None else {"like": self.like}
        return {"adapter": self.offer.knobs, "params": self.offer.plan.params, "lr": self.lr, **like}

    @property
    def why(self) -> str:
        """Where it was measured, and how to train it."""
        if self.like is None:
            return f"(by docs/bytes.md; train it with AdamW at lr {self.lr:g}, the default)"
        measured = (
            f"docs/real-base.md measured 24 weights of 384×384, where this corresponds to {self.like:,} parameters"
        )
        return f"({measured}; train it with AdamW at lr {self.lr:g}, the default)"


def recommended(targets: Sequence[TargetShape], budget: int) -> Recommendation | None:
    """What to train with at most `budget` parameters on these targets; None if nothing fits, or if dense training does.

    The budget is shared among the entries of one square matrix of all weights, of rank 8 (one-hot F_in): at most sizes
    the best of our settings in the evidence, and at none clearly behind another. Budgets are compared with those of the
    evidence in multiples of weight-wise LoRA of rank 1.
    """
    scale = _lora(MEASURED) / _lora(targets)
    if budget >= sum(target.elements for target in targets):
        return None
    offer = _shared(targets, min(budget, round(MOST / scale)))
    return None if offer is None else Recommendation(offer, RATE, round(offer.plan.params * scale))


def recommended_of_bits(targets: Sequence[TargetShape], size: int, bits: int) -> Recommendation | None:
    """What to train with `size` bytes of numbers of `bits` bits; None if dense training fits, too."""
    dim = 8 * size // bits
    offer = None if dim >= sum(target.elements for target in targets) else _shared(targets, dim, bits=bits)
    return None if offer is None else Recommendation(offer, usual_rate(bits))


def _shared(targets: Sequence[TargetShape], dim: int, **more: Any) -> Offer | None:
    try:
        return Offer.of("recommended", SHARED | {"inner": {"projection": "onehot", "dim": dim}, **more}, targets)
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
