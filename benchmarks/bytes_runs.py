"""The runs of `bytes.py`: their settings, in the order of their importance, and those on record."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import few_shot
import head_to_head
import torch
from bytes_tried import NORMAL, SPREAD, TRAINED, patched
from evidence import LORA, Rows
from methods import OURS, Method
from recorded import Records, Row, key_of

from superlora_cli.adapter.shapes import number_bytes

RECORDS = Records("bytes.jsonl", itemgetter("run"))
BI_LORA = {"method": "lora", "rank": 1, "scaling": "weights", "alpha": 2.0, "bits": 1}
RATE, SEEDS, MANY = 0.26, (0, 1, 2), tuple(range(10))
TWENTY = tuple(range(20))  # seeds of the claims; LoRA's first ten are in the records of head_to_head.py
RATES = (RATE, 0.15, 0.1)  # that the setting of the claim has many seeds at
REAL = [  # on the real base: numbers, alpha with `scaling: weights`, rate, seeds
    (4096, 0.5, 0.1, (0, 1)),
    (4096, 2.0, 0.1, (0,)),
    (4096, 1.0, 0.1, (0,)),
    (4096, 0.25, 0.1, (0,)),
    (4096, 0.5, 0.03, (0,)),
    (4096, 2.0, 0.26, (0,)),
    (4096, 0.25, 0.26, (0,)),
    (1365, 0.5, 0.1, (0,)),
]


def onehot(dim: int, bits: int, **more: Any) -> Method:
    """One square matrix of rank 8 of all weights, whose entries are `dim` shared numbers."""
    knobs = {"rank": 8, "inner": {"projection": "onehot", "dim": dim}, "alpha": 0.33, "bits": bits, **more}
    return Method(OURS, "2D one-hot", knobs)


CLAIM, LARGER = onehot(408, 3), onehot(512, 3)
COMPARED = [
    (CLAIM, RATE),
    (onehot(64, 4), RATE),
    (onehot(306, 4), RATE),
    (onehot(1024, 4), RATE),
    (onehot(612, 2), RATE),
    (onehot(1224, 1), RATE),
    (Method(OURS, "LoRA, as Bi-LoRA of 1 bit", BI_LORA), RATE),
    (LARGER, RATE),
    (onehot(128, 4), RATE),
]
ABLATED: dict[str, list[tuple[Method, float]]] = {
    "levels (as many bytes)": [(onehot(1224, 1), RATE), (onehot(612, 2), RATE), (onehot(306, 4), RATE)],
    "rate": [(CLAIM, 0.1), (CLAIM, 0.15), (CLAIM, 0.5)],
    "spacing": [
        (onehot(408, 3, **{SPREAD: 0.75}), RATE), (onehot(408, 3, **{SPREAD: 1.33}), RATE),
        (onehot(408, 3, **{TRAINED: 0.1}), RATE),
    ],
    "start": [(onehot(408, 3, **{NORMAL: 1.0}), RATE), (onehot(408, 3, init="lora"), RATE)],
    "alpha": [(onehot(408, 3, alpha=0.15), RATE)],
}  # fmt: skip
LONG = 900  # steps that LoRA and the claim's setting are given, too, each at the best of these rates by validation
LONGER = [(LORA, (0.0025, 0.01, 0.04)), (CLAIM, RATES)]
TEACHER = (Method("PEFT", "LoRA", {"r": 4}), 0.01)
TAUGHT = [  # with many seeds, too, by a teacher of the same seed
    (CLAIM, RATE, head_to_head.STEPS),
    (LORA, 0.01, head_to_head.STEPS),
    (CLAIM, 0.15, LONG),
    (LORA, 0.01, LONG),
]


class Run(NamedTuple):
    """A setting, its rate, and a seed."""

    method: Method
    rate: float
    seed: int
    steps: int = head_to_head.STEPS
    taught: bool = False  # by `TEACHER`

    @property
    def key(self) -> str:
        more: list[Any] = [self.steps] if self.steps != head_to_head.STEPS else []
        more += ["taught"] if self.taught else []
        return key_of(self.method.name, self.method.settings, self.rate, self.seed, *more)


def wanted() -> list[Run]:
    """All runs, the most important first."""
    runs = [Run(CLAIM, RATE, seed) for seed in SEEDS]
    runs += [Run(method, rate, seed) for method, rate in COMPARED[1:6] for seed in SEEDS]
    runs += [Run(CLAIM, rate, seed) for rate in RATES for seed in MANY]
    runs += [Run(LARGER, rate, seed) for rate in (RATE, 0.1) for seed in MANY]
    runs += [Run(LORA, lora(MANY).rate, seed) for seed in TWENTY if seed not in MANY]
    runs += [Run(method, RATE, seed) for method in (CLAIM, LARGER) for seed in TWENTY]
    runs += [Run(method, rate, seed, steps, taught=True) for seed in TWENTY for method, rate, steps in TAUGHT]
    changed = [setting for settings in ABLATED.values() for setting in settings]
    runs += [Run(method, rate, seed) for method, rate in [*COMPARED, *changed] for seed in SEEDS]
    for method, rates in LONGER:
        runs += [Run(method, rate, seed, LONG) for rate in rates for seed in SEEDS]
        if (best := long_rate(method, rates)) is not None:
            runs += [Run(method, best, seed, LONG) for seed in MANY]
    return list({run.key: run for run in runs}.values())


def missing() -> list[Run]:
    """Those that have not been made, as far as is known; the best of some rates asks for more."""
    have = RECORDS.known()
    return [run for run in wanted() if run.key not in have]


def train(run: Run) -> Row:
    """One run, with what is tried of it put in the place of what the package does."""
    told = logits_of_teacher(run.seed) if run.taught else None
    with patched(run.method.settings) as knobs:
        row = head_to_head.train(run.method._replace(settings=knobs), run.rate, run.seed, run.steps, told)
    return {**row, "run": run.key, "numbers": number_bytes((row["parameters"],), knobs.get("bits"))}


@cache
@torch.no_grad()
def logits_of_teacher(seed: int) -> torch.Tensor:
    """What the teacher, trained with this seed, says of all training images."""
    with torch.enable_grad():
        model = head_to_head.fit(*TEACHER, seed).model
    found: torch.Tensor = model(head_to_head.task()[1]["train"][0])
    return found


def finished(
    method: Method,
    rate: float,
    seeds: Sequence[int] = SEEDS,
    steps: int = head_to_head.STEPS,
    *,
    taught: bool = False,
) -> Rows | None:
    """A setting with all these seeds; None where one is missing."""
    have = RECORDS.known()
    rows = [have.get(Run(method, rate, seed, steps, taught).key) for seed in seeds]
    return Rows(method, rate, [row for row in rows if row]) if all(rows) else None


def lora(seeds: Sequence[int]) -> Rows:
    """PEFT's LoRA of rank 1 after the usual steps."""
    first = head_to_head.finished([LORA], [seed for seed in seeds if seed in MANY])[0]
    more = finished(LORA, first.rate, [seed for seed in seeds if seed not in MANY])
    assert more is not None
    return Rows(LORA, first.rate, [*first.rows, *more.rows])


def long_rate(method: Method, rates: Sequence[float]) -> float | None:
    """The rate with the best validation accuracy over `SEEDS` after `LONG` steps; None where a run is missing."""
    found = [finished(method, rate, SEEDS, LONG) for rate in rates]
    return max((rows.validation, rows.rate) for rows in found if rows)[1] if all(found) else None


def on_the_real_base() -> list[list[few_shot.Run]]:
    """The runs of `REAL`, 3 bits a number."""
    found = []
    for dim, alpha, rate, seeds in REAL:
        knobs = {"rank": 8, "inner": {"projection": "onehot", "dim": dim}, "scaling": "weights", "alpha": alpha}
        method = Method(OURS, "one-hot", {**knobs, "bits": 3})
        found.append([few_shot.Run("vit_s", method, rate, seed) for seed in seeds])
    return found
