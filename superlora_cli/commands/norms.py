"""The norm of an adapter's update for every weight, absolute and relative to the base weight."""

from __future__ import annotations

import math
from typing import Any

from torch import linalg

from superlora_cli.adapter.packed import rows_of
from superlora_cli.errors import SuperLoraError
from superlora_cli.opening.base import open_base
from superlora_cli.opening.shapes_only import Stored


def norms(adapter: Stored) -> dict[str, Any]:
    """Frobenius norms of ΔW, and their ratio to the norms of the base weights.

    Returns:
        targets: name, norm ‖ΔW‖ and relative ‖ΔW‖ / ‖W‖ of each; norm and relative of all together; why_not: None, or
        why the base cannot be built, in which case every relative is None.

    Raises:
        RunError: ΔW is not finite.
    """
    recipe, model, why_not = adapter.recipe, None, None
    try:
        model = open_base(recipe, adapter.stored).model
    except SuperLoraError as error:
        why_not = str(error)
    rows, squares, base_squares = [], 0.0, 0.0
    weights = None if model is None else rows_of(model, adapter.targets)
    for index, (target, delta) in enumerate(zip(adapter.targets, adapter.deltas(), strict=True)):
        norm, relative = linalg.vector_norm(delta).item(), None
        if weights is not None:
            base = linalg.vector_norm(weights[index].float()).item()
            relative, base_squares = norm / base if base else None, base_squares + base**2
        rows.append({"name": target.name, "norm": norm, "relative": relative})
        squares += norm**2
    whole = math.sqrt(squares / base_squares) if base_squares else None
    return {"targets": rows, "norm": math.sqrt(squares), "relative": whole, "why_not": why_not}
