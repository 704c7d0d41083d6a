"""The largest setting of every method within a budget of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import UsageError

Knobs = dict[str, Any]
Size = Callable[[Plan], int]


def _grid(method: str | None = None, /, **choices: Iterable[Any]) -> list[Knobs]:
    """Every combination of the choices, for a preset if one is named."""
    named: Knobs = {"method": method} if method else {}
    return [named | dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


GROUPS = (1, 2, 4, 8, 12, 24)
SPLIT_DIMS = (4, 6, 8, 10, 16, 32, 64)
RATIOS = (0.5, 0.25, 0.1, 0.05, 0.01)  # the paper's sweep and 0.05

FAMILIES: dict[str, list[Knobs]] = {
    "dense": _grid("dense"),
    "LoRA": _grid("lora"),
    "LoHA": _grid("loha"),
    "LoKr": _grid("lokr", split_dim=SPLIT_DIMS),
    "KronA": _grid("krona", split_dim=SPLIT_DIMS),
    "LoTR": _grid("lotr"),
    "LoNKr": _grid("lonkr", splits=(2, 3, 4), split_dim=(6, 8, 10)),
    "2D": _grid(order=(2,), groups=GROUPS),
    "LoRTA 3D": _grid("lorta", order=(3,), groups=GROUPS),
    "LoRTA 4D": _grid("lorta", order=(4,), groups=GROUPS),
    "LoRTA 5D": _grid("lorta", order=(5,), groups=GROUPS),
    "2D projected": _grid(order=(2,), projection=("linear_v2",), ratio=RATIOS),
    "LoRTA 3D projected": _grid("lorta", order=(3,), projection=("linear_v2",), ratio=RATIOS),
    "LoRTA 4D projected": _grid("lorta", order=(4,), projection=("linear_v2",), ratio=RATIOS),
    "LoRTA 5D projected": _grid("lorta", order=(5,), projection=("linear_v2",), ratio=RATIOS),
    "2D, one-hot": _grid(order=(2,), rank=(4,), inner=({"projection": "onehot"},)),
    "LoRTA 3D, one-hot": _grid("lorta", order=(3,), rank=(4,), inner=({"projection": "onehot"},)),
    "Uni-LoRA": _grid("unilora", inner=({},)),
    "NOLA": _grid("nola", inner=({},)),
    "VeRA": _grid("vera"),
    "RandLoRA": _grid("randlora", rank=(1, 2, 4, 8, 16, 32, 64)),
    "LoRA-XS": _grid("lora_xs"),
    "TinyLoRA": _grid("tinylora", rank=(2, 4, 8, 16), inner=({},)),
    "FourierFT": _grid("fourierft", ratio=(0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)),
    "FacT-TK": _grid("fact_tk"),
    "CaRA": _grid("cara"),
}


@dataclass(frozen=True)
class Offer:
    """A setting within the budget: its family, its knobs and its shapes."""

    family: str
    knobs: Knobs
    plan: Plan

    @classmethod
    def of(cls, family: str, knobs: Knobs, targets: Sequence[TargetShape]) -> Offer:
        """Knobs (including `method`) with their shapes.

        Raises:
            UsageError: the knobs are incompatible, or do not fit these targets.
        """
        rest = {name: value for name, value in knobs.items() if name != "method"}
        return cls(family, knobs, plan(AdapterConfig.from_knobs(knobs.get("method"), **rest), targets))

    @property
    def flags(self) -> str:
        """The knobs as arguments of `superlora count-params`."""
        return " ".join(flag(name, value) for name, value in self.knobs.items())


def flag(knob: str, value: Any) -> str:
    """A knob as an argument of `superlora count-params`.

    >>> flag("rank", ("full", 2, 2)), flag("inner", {"projection": "onehot", "dim": 64})
    ('--rank full,2,2', '--inner onehot --dim 64')
    """
    if isinstance(value, Mapping):
        return " ".join(flag("inner" if key == "projection" else key, own) for key, own in value.items())
    return f"--{knob.replace('_', '-')} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def params(plan: Plan) -> int:
    """What a budget of numbers limits."""
    return plan.params


def number_bytes(plan: Plan) -> int:
    """What a budget of bytes limits: those of the numbers and their scales."""
    return plan.bytes


def offers(
    targets: Sequence[TargetShape], budget: int, given: Mapping[str, Any], *, size: Size = params
) -> list[Offer]:
    """The largest setting of every family whose `size` is at most `budget`, most parameters first.

    No setting has more parameters than dense fine-tuning. Knobs in `given` are fixed; families of another method or
    order and incompatible knobs are left out.

    Raises:
        UsageError: no setting fits; the hint names the smallest one tried, or the last error.
    """
    refused: list[Offer | UsageError] = []
    found = []
    for family, grid in FAMILIES.items():
        candidates = [
            offer
            for knobs in grid
            if all(given.get(name, knobs.get(name)) == knobs.get(name) for name in ("method", "order") if name in given)
            for offer in largest(family, {**knobs, **given}, targets, budget, refused, size=size)
        ]
        if candidates:
            found.append(
                max(candidates, key=lambda offer: offer.plan.params)
            )  # the first of equal ones has the fewest groups
    if not found:
        what, where = ("bytes", "--bytes") if size is number_bytes else ("parameters", "--budget")
        raise UsageError(f"no setting has at most {budget:,} {what}", where=where, hint=_why(refused, size))
    return sorted(found, key=lambda offer: -offer.plan.params)


def largest(
    family: str,
    knobs: Knobs,
    targets: Sequence[TargetShape],
    limit: int,
    refused: list[Offer | UsageError],
    *,
    size: Size = params,
) -> Iterator[Offer]:
    """The setting with the highest rank whose `size` is within the limit, if any: it grows with the rank.

    With an F_in it grows with `dim` instead.
    """

    elements = sum(target.elements for target in targets)

    def at(**rank: Any) -> Offer | None:
        try:
            made = Offer.of(family, knobs | rank, targets)
        except UsageError as error:
            refused.append(error)
            return None
        if size(made.plan) > limit or made.plan.params > elements:
            refused.append(made)
            return None
        return made

    inner = knobs.get("inner")
    if inner is not None and "dim" not in inner and inner.get("projection") != "none":
        if offer := _last(lambda dim: at(inner={**inner, "dim": dim})):
            yield offer
        return
    fixed = "rank" in knobs or knobs.get("method") in ("dense", "krona", "fourierft")
    if offer := at() if fixed else _last(lambda rank: at(rank=rank)):
        yield offer


def _last(at: Callable[[int], Offer | None]) -> Offer | None:
    """The last of at(1), at(2), … that is not None, given that after the first None all are None."""
    best, step = None, 1
    while found := at(step):
        best, step = found, 2 * step
    low, high = step // 2, step
    while high - low > 1:
        middle = (low + high) // 2
        if found := at(middle):
            best, low = found, middle
        else:
            high = middle
    return best


def _why(refused: Sequence[Offer | UsageError], size: Size) -> str:
    """Why nothing could be offered."""
    larger = [offer for offer in refused if isinstance(offer, Offer)]
    if larger:
        smallest = min(larger, key=lambda offer: size(offer.plan))
        return f"the smallest, {smallest.flags}, has {size(smallest.plan):,}"
    return str(refused[-1]) if refused else "no method has this order"
