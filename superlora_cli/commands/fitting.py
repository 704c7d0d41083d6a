"""What `extract` and `import` share: an adapter fitted to a given ΔW, and a recipe around a base that has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from superlora_cli.adapter import svd
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.fit.solve import Fit, fit, measured
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
        UsageError: a knob is wrong, or it has no factors, or tensors beside them.
    """
    asked = AdapterConfig.from_knobs(knobs.get("method"), **{k: v for k, v in knobs.items() if k != "method"})
    if asked.also or not asked.adapts:
        where, what = (
            ("adapter.also", "that trains other tensors") if asked.also else ("adapter.method", "without factors")
        )
        raise UsageError(
            f"an adapter {what} cannot be fitted to a difference", where=where, hint="choose a method with factors only"
        )
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
    planes = svd.planes(made, list(rows)) if asked.frozen == "svd" else None
    found = fit(made, goal, steps=steps, base=planes)
    if asked.bits is None:
        return made, found
    made = replace(made, config=quantised_after(made, found.tensors, asked.bits))
    return made, measured(made, as_trained(made, as_stored(made, found.tensors)), goal, found, base=planes)


def around(section: ModelSection, task: str) -> dict[str, Any]:
    """The other sections of a recipe for a base that no recipe has trained."""
    return {
        "task": task,
        "model": section.model_dump(),
        "data": {"name": "digits" if section.name in EMBEDDED else "unknown"},
        "train": {"steps": 1, "optimizer": {"lr": 0.0}},
    }
