"""The possible settings: each within the budget, by the closed form of its size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from superlora_cli.adapter.config import ALPHA, ALPHA_ON_LEVELS, usual_rate
from superlora_cli.adapter.inner_config import on_top
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.analysis.budget import Knobs, Offer, Size, largest, number_bytes, params
from superlora_cli.analysis.recommended import BITS, recommended, recommended_of_bits
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.recipe.defaults import BY_GRADIENT
from superlora_cli.recipe.schema import OptimizerSection, Recipe
from superlora_cli.tuning.schema import Range, Space

if TYPE_CHECKING:
    from optuna import Trial

Values = Mapping[str, Any]  # of one trial: `form` and the keys of the ranges
RECOMMENDED = "recommended"
FORMS: dict[str, Knobs] = {  # what docs/real-base.md and docs/evidence.md found good at some size
    "2D, one-hot": {"order": 2, "rank": [2, 4, 16], "inner": {"projection": "onehot"}},
    "LoRTA, one-hot": {"method": "lorta", "order": [3, 4, 5], "rank": [4, 8], "inner": {"projection": "onehot"}},
    "2D": {"order": 2, "groups": [1, 4]},
    "2D, projected": {"order": 2, "projection": "linear_v2", "ratio": [0.1, 0.25]},
    "CP": {"order": [3, 4], "core": "identity"},
    "LoRTA": {"method": "lorta", "order": [3, 4, 5]},
    "LoKr": {"method": "lokr", "split_dim": [8, 16]},
    "LoRA": {"method": "lora"},
}
NOT_SIZING = ("adapter.alpha", "adapter.init", "adapter.rescale", "adapter.scaling", "adapter.seed")


@dataclass(frozen=True)
class Budget:
    """At most `most` trained numbers of the adapter, or bytes of them and their scales."""

    most: int
    in_bytes: bool = False

    @property
    def size(self) -> Size:
        """What it limits."""
        return number_bytes if self.in_bytes else params

    def __str__(self) -> str:
        return f"{self.most:,} {'bytes' if self.in_bytes else 'parameters'}"


def usual_space(recipe: Recipe, targets: Sequence[TargetShape], budget: Budget) -> Space:
    """The space to search if none is given: around what `count-params --budget` (or `--bytes`) recommends.

    Its first trial is that recommendation, with the default learning rate.
    """
    optimizer, bits = recipe.train.optimizer, BITS if budget.in_bytes else None
    usual = usual_rate(bits) if optimizer.name == OptimizerSection().name else optimizer.lr
    if not isinstance(usual, float):
        hint = "a number, around which it is searched for"
        raise UsageError(f"{usual}: {optimizer.name} has no usual rate", where="train.optimizer.lr", hint=hint)
    ranges: dict[str, Any] = {"train.optimizer.lr": {"low": usual / 3, "high": usual * 5, "log": True}}
    first: dict[str, Any] = {"form": RECOMMENDED, "train.optimizer.lr": usual}
    scaled: Knobs = {}
    if optimizer.name not in BY_GRADIENT:
        alpha = ALPHA_ON_LEVELS if bits else ALPHA
        ranges["adapter.alpha"] = {"low": alpha / 2, "high": alpha * 4, "log": True}
        first["adapter.alpha"] = alpha
        scaled = {"scaling": "weights"}
    if bits:
        ranges["adapter.bits"] = [2, BITS, 4, 8]
        first["adapter.bits"] = BITS
    start = recommended_of_bits(targets, budget.most, BITS) if bits else recommended(targets, budget.most)
    forms = {name: knobs | scaled for name, knobs in FORMS.items()}
    if start is not None:
        knobs = {key: value for key, value in start.offer.knobs.items() if key != "bits"}
        grows = {"inner": {"projection": "onehot"}} if bits else {}  # as many numbers as other bits leave room for
        forms = {RECOMMENDED: knobs | grows | scaled, **forms}
    return Space.model_validate({"forms": forms, "ranges": ranges, "trials": [first] if start is not None else []})


@dataclass(frozen=True)
class LeftOut:
    """A form that is not tried, and why."""

    form: str
    why: str


class SearchSpace:
    """A `Space` within a budget, on the weights that a recipe adapts.

    Args:
        targets: the weights.
        where: the name of the space, for errors.

    Raises:
        UsageError: no form fits the budget, or a range or a first trial is wrong.
    """

    def __init__(self, space: Space, budget: Budget, targets: Sequence[TargetShape], where: str) -> None:
        self.space, self.budget, self.targets, self.where = space, budget, targets, where
        for key, among in space.ranges.items():
            if isinstance(among, Range) and not among.low < among.high:
                raise UsageError(f"{among.low:g} to {among.high:g}", where=f"{where}: ranges.{key}", hint="low < high")
            if isinstance(among, Range) and among.log and among.low <= 0:
                hint = "low > 0 with log: true"
                raise UsageError(f"log from {among.low:g}", where=f"{where}: ranges.{key}", hint=hint)
        self.sizing = [key for key in space.ranges if key.startswith("adapter.") and key not in NOT_SIZING]
        for key in self.sizing:
            if isinstance(space.ranges[key], Range):
                hint = "a list of choices"
                raise UsageError("the size depends on it", where=f"{where}: ranges.{key}", hint=hint)
        self._offers: dict[tuple[str, str], Offer] = {}
        self.left_out: list[LeftOut] = []
        self.forms = {name: knobs for name, knobs in _each_form(space.forms) if self._fits(name, knobs)}
        if not self.forms:
            raise UsageError(f"no form has at most {budget}", where=where, hint=self.left_out[0].why)
        self.first = [self._checked(values, index) for index, values in enumerate(space.trials)]

    def _fits(self, name: str, knobs: Knobs) -> bool:
        """Whether a form fits with every choice that its size depends on; its largest settings are kept."""
        for chosen in product(*(self.space.ranges[key] for key in self.sizing)):
            own = dict(zip(self.sizing, chosen, strict=True))
            refused: list[Offer | UsageError] = []
            flat = {key.removeprefix("adapter."): value for key, value in own.items()}
            found = list(largest(name, knobs | flat, self.targets, self.budget.most, refused, size=self.budget.size))
            if not found:
                why = [f"{self.budget.size(one.plan):,}" if isinstance(one, Offer) else str(one) for one in refused]
                self.left_out.append(LeftOut(name, f"the smallest has {why[0]}" if why[0][0].isdigit() else why[0]))
                return False
            self._offers[name, repr(own)] = found[0]
        return True

    def _checked(self, values: Values, index: int) -> dict[str, Any]:
        """A first trial that can be drawn from the space."""
        where = f"{self.where}: trials.{index}"
        known = ["form", *self.space.ranges]
        for key in values:
            if key not in known:
                raise UsageError(f"unknown key '{key}'", where=where, hint=did_you_mean(key, known))
        for key in known:
            if key not in values:
                raise UsageError("missing", where=f"{where}.{key}", hint="every key of `ranges`, and `form`")
            among = list(self.forms) if key == "form" else self.space.ranges[key]
            if isinstance(among, Range):
                inside = isinstance(values[key], int | float) and among.low <= values[key] <= among.high
                choices = f"{among.low:g} to {among.high:g}"
            else:
                inside, choices = values[key] in among, ", ".join(map(str, among))
            if not inside:
                raise UsageError(f"{values[key]} is not in the space", where=f"{where}.{key}", hint=choices)
        return dict(values)

    def suggest(self, trial: Trial) -> None:
        """Draw the values of a trial."""
        trial.suggest_categorical("form", list(self.forms))
        for key, among in self.space.ranges.items():
            if isinstance(among, Range):
                trial.suggest_float(key, among.low, among.high, log=among.log)
            else:
                trial.suggest_categorical(key, among)

    def offer(self, values: Values) -> Offer:
        """The largest setting within the budget of a trial's form."""
        return self._offers[values["form"], repr({key: values[key] for key in self.sizing})]

    def settings(self, values: Values) -> dict[str, Any]:
        """Recipe keys and their values, numbers rounded to three digits; `adapter` is a whole section."""
        adapter, others = dict(self.offer(values).knobs), {}
        for key, value in values.items():
            if key != "form":
                plain = float(f"{value:.3g}") if isinstance(value, float) else value
                above, _, knob = key.partition(".")
                if above == "adapter":
                    adapter = on_top(adapter, {knob: plain})
                else:
                    others[key] = plain
        return {"adapter": adapter, **others}

    def described(self) -> list[dict[str, Any]]:
        """Every form with its largest settings: `form`, `params`, `bytes` (each the smallest and largest)."""
        rows = []
        for name in self.forms:
            plans = [offer.plan for (form, _), offer in self._offers.items() if form == name]
            sizes = {"params": [plan.params for plan in plans], "bytes": [plan.bytes for plan in plans]}
            rows.append({"form": name, **{key: [min(own), max(own)] for key, own in sizes.items()}})
        return rows


def _each_form(forms: Mapping[str, Knobs]) -> Iterator[tuple[str, Knobs]]:
    """Every choice of every form, by a name that says what was chosen.

    >>> [name for name, _ in _each_form({"CP": {"order": [3, 4], "core": "identity"}})]
    ['CP, order 3', 'CP, order 4']
    """
    for name, knobs in forms.items():
        chosen = {key: value for key, value in knobs.items() if isinstance(value, list)}
        for values in product(*chosen.values()):
            own = dict(zip(chosen, values, strict=True))
            yield ", ".join([name, *(f"{key} {value}" for key, value in own.items())]), {**knobs, **own}
