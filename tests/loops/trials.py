"""Whether a loop trains what it should: its factors, outputs and merged weights beside those of `work.Work.wanted`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from superlora_cli.adapter.attach import detach
from tests.loops.loops import LOOPS
from tests.loops.work import Work, squares

COMPARED = ("factors", "outputs", "merged outputs")


def tried(loop: str, variant: str, path: str) -> dict[str, str | None]:
    """What was compared → what is wrong with it, None where it is right to 1e-6."""
    chosen = LOOPS[loop]
    work = Work(variant, path, chosen.make, objective=chosen.objective)
    work = work if chosen.batch is None else replace(work, batch=chosen.batch)
    factors, output = work.wanted()
    model, adapter = work.adapted()
    assert adapter.factored == (path == "factored")
    first = work.batches()[0]
    found: dict[str, str | None] = dict.fromkeys(COMPARED, "not reached")
    try:
        model, adapter = chosen.run(model, adapter, work.batches(), chosen.objective)
        found["factors"] = _wrong(lambda: {name: factor.detach() for name, factor in adapter.factors.items()}, factors)
        model.eval()
        found["outputs"] = _wrong(lambda: _score(model, first), output)
        _unpeft(model)
        detach(model, merge=True)
        found["merged outputs"] = _wrong(lambda: _score(model, first), output)
    except Exception as error:
        found = {what: wrong and f"{type(error).__name__}: {error}"[:300] for what, wrong in found.items()}
    return found


def _score(model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return squares(model, batch)


def _unpeft(model: nn.Module) -> None:
    """Without PEFT's tuner layer, which does not know of `detach`."""
    model._modules.pop("peft_superlora", None)


def _wrong(found: Callable[[], Any], wanted: Any) -> str | None:
    try:
        torch.testing.assert_close(found(), wanted, rtol=1e-6, atol=1e-8)
    except AssertionError as error:
        return str(error)[:300]
    return None
