"""Every loop trains what it should, with a few variants; `benchmarks/loops.py` tries all variants in all loops."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.loops.loops import LOOPS
from tests.loops.trials import COMPARED, tried

CASES = (("lora", "factored"), ("lokr", "factored"), ("2D, not folded", "materialised"), ("lorta 3D", "materialised"),
         ("vera", "factored"), ("linear 0.5 of 2D", "materialised"), ("unilora", "materialised"))  # fmt: skip
SLOW = ("torch.compile", "torch.export before every step")
NEEDS_BENCH = ("transformers' Trainer", "PEFT: policy, reference, backward")  # the extra `bench`, as tests/peers does


def _few() -> list[object]:
    """Two cases a loop, other ones for the next; one where it is slow."""
    found = []
    for number, loop in enumerate(LOOPS):
        if loop in NEEDS_BENCH and not (find_spec("peft") and find_spec("transformers")):
            continue
        for case in (CASES[2 * number % len(CASES)], CASES[(2 * number + 1) % len(CASES)])[: 1 if loop in SLOW else 2]:
            marks = [pytest.mark.slow] if loop in SLOW else []
            found.append(pytest.param(loop, *case, marks=marks, id=f"{loop}: {case[0]}, {case[1]}"))
    return found


@pytest.mark.parametrize(("loop", "variant", "path"), _few())
def test_a_loop_trains_what_plain_autograd_trains(loop: str, variant: str, path: str) -> None:
    assert tried(loop, variant, path) == dict.fromkeys(COMPARED)
