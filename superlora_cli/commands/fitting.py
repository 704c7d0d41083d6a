"""What `extract` and `import` share: an adapter fitted to a given ΔW, and a recipe around a base that has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.fit.solve import Fit, fit, measured
from superlora_cli.adapter.from_base import from_base
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.quantized import as_stored, as_trained, quantised_after
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import UsageError
from superlora_cli.models.embedded import EMBEDDED
from superlora_cli.recipe.schema import ModelSection


def config_of(knobs: Mapping[str, Any]) -> AdapterConfig:
    """The knobs, including `method`, of an adapter that can be fitted.

    Raises:
        UsageError: a knob is wrong, it has no factors, tensors beside them or no ΔW, multiplies the base or needs
            gradients.
    """
    asked = AdapterConfig.from_knobs(knobs.get("method"), **{k: v for k, v in knobs.items() if k != "method"})
    for knob, used, what in (
        ("also", asked.also, "that trains other tensors"),
        ("method", not asked.adapts, "without factors"),
        ("multiply", asked.multiplies, "that multiplies the base"),
        ("projection", asked.places, "whose numbers are placed by gradients"),
        ("activation", asked.activates, "without a ΔW"),
    ):
        if used:
            what, hint = f"an adapter {what} cannot be fitted to a difference", "choose a method with factors only"
            raise UsageError(what, where=f"adapter.{knob}", hint=hint)
    return asked


def fitted(
    asked: AdapterConfig, targets: Sequence[Target], goal: Sequence[Tensor], rows: Iterable[Tensor], *, steps: int
) -> tuple[Plan, Fit]:
    """The adapter nearest to `goal`; numbers of a few bits are fitted first, and quantised after.

    Args:
        goal: ΔW of every target, (rows, columns).
        rows: the base's weights of every target, from which frozen factors may come.
        steps: most steps of fitting, see `adapter.fit.solve.fit`.
    """
    made = plan(replace(asked, bits=None), [target.flat for target in targets])
    taken = from_base(made, list(rows)) if asked.reads_base else None
    found = fit(made, goal, steps=steps, base=taken)
    if asked.bits is None:
        return made, found
    made = replace(made, config=quantised_after(made, found.tensors, asked.bits))
    return made, measured(made, as_trained(made, as_stored(made, found.tensors)), goal, found, base=taken)


def around(section: ModelSection, task: str) -> dict[str, Any]:
    """The other sections of a recipe for a base that no recipe has trained."""
    return {
        "task": task,
        "model": section.model_dump(),
        "data": {"name": "digits" if section.name in EMBEDDED else "unknown"},
        "train": {"steps": 1, "optimizer": {"lr": 0.0}},
    }
