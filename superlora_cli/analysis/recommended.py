"""The setting that the evidence (docs/real-base.md, docs/bytes.md) is for, at a number of parameters or of bytes."""

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
FOLDED_FROM = 3764  # parameters there, rank 1; with fewer, the entries of a matrix of rank 8 share them
SHARED: Knobs = {"order": 2, "rank": 8}
BITS, RATE_OF_BITS = 3, 0.26  # what is good in docs/bytes.md


@dataclass(frozen=True)
class Recommendation:
    """An offer, a rate that is good where it was measured, and the number of parameters there that it is like."""

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
        """Where it was measured, and how it is trained."""
        if self.like is None:
            return f"by docs/bytes.md, on 12 weights of 64×64; train it with AdamW at {self.lr:g}"
        where = "by docs/real-base.md, whose weights are 24 of 384×384"
        return f"{where}: there it is like {self.like:,} parameters; train it with AdamW at {self.lr:g}, the default"


def recommended(targets: Sequence[TargetShape], budget: int) -> Recommendation | None:
    """What to train with at most `budget` parameters on these targets; None where nothing fits, or all of them do.

    Many parameters are one square matrix of all weights, of the highest rank that fits; few are shared by the entries
    of one of rank 8 (one-hot F_in). Other weights than those of the evidence count as many times the parameters that
    weight-wise LoRA of rank 1 has.
    """
    scale = _lora(MEASURED) / _lora(targets)
    if budget >= sum(target.elements for target in targets):
        return None
    offer = next(largest("recommended", FOLDED, targets, budget, []), None)
    if offer is None or offer.plan.params * scale < FOLDED_FROM:
        offer = _shared(targets, budget)
    return None if offer is None else Recommendation(offer, RATE, round(offer.plan.params * scale))


def recommended_of_bits(targets: Sequence[TargetShape], size: int, bits: int) -> Recommendation | None:
    """What to train with `size` bytes of numbers of `bits` bits; None where there would be as many as weights."""
    dim = 8 * size // bits
    offer = None if dim >= sum(target.elements for target in targets) else _shared(targets, dim, bits=bits)
    return None if offer is None else Recommendation(offer, RATE_OF_BITS)


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
