"""Accuracy against parameters: ours, PEFT's and LyCORIS's methods on the same base, data and number of steps.

    python benchmarks/head_to_head.py                     # runs what is missing, writes docs/evidence.md
    python benchmarks/head_to_head.py --only comparison   # a part: comparison, further, ablations, newer
    python benchmarks/head_to_head.py --names LoRA VeRA   # methods whose name has one of these in it
    python benchmarks/head_to_head.py --list              # what would run
    python benchmarks/head_to_head.py --workers 1

The comparison has every method at about three sizes; further are more sizes, and settings of ours; the ablations have
some of ours with one thing changed, and so has newer: what multiplies the base, chooses positions, starts from
batches or is nonlinear.
The task is the embedded one: glyphs_vit (64 wide, 6 blocks), its q and v as Linears of their own, frozen head, 300
steps of AdamW on batches of 64 handwritten digits under OneCycleLR, no augmentation. Every method has the same grid of
learning rates, which goes on where its end is the best; the rate with the best validation accuracy (seed 0, at the end
of training) is run with two more seeds, and with ten what is claimed of LoRA.
PEFT's and LyCORIS's other settings are their defaults. Results are kept in records/head_to_head.jsonl, one run a line,
with what was right of the test images, so that differences are paired. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import evidence
import pages
import torch
from attaching import adapted, base_and_data, start_from
from evidence import LORA, Claims, Rows, draw, finalists
from methods import Method, ablations, comparison, further, newer
from recorded import Records, Row, key_of, processes
from torch.nn import functional

from superlora_cli.recipe.schema import TeacherSection
from superlora_cli.tasks.teaching import divergence, softened

RECORDS = Records("head_to_head.jsonl", itemgetter("run"))
STEPS, BATCH = 300, 64
AT_ONCE = 5  # methods
RATES, SEEDS = (0.01, 0.04, 0.15, 0.4), (0, 1, 2)
MANY = tuple(range(10))  # seeds of what the claims are about
BEYOND = {0.01: 0.0025, 0.4: 1.0}  # tried too where that end of the grid is the best of it
Run = tuple[Method, float, int]  # learning rate, seed
TEMPERATURE = TeacherSection(run="").temperature

_task: list[Any] = []  # of this process: base and data


PARTS = {
    "comparison": list(comparison()),
    "further": list(further()),
    "ablations": list(chain(*ablations())),
    "newer": list(chain(*newer())),
}


def compared() -> list[Method]:
    """The methods in the table: all except the ablations."""
    return PARTS["comparison"] + PARTS["further"]


class Fitted(NamedTuple):
    """A trained model, its trained parameters, the bytes of its file, and CPU ms per step."""

    model: torch.nn.Module
    trained: dict[str, torch.nn.Parameter]
    size: int
    taken: float


def task() -> tuple[torch.nn.Module, Any]:
    """The base, and its data by split."""
    if not _task:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        _task.extend(base_and_data())
    base, data = _task
    return base, data


def fit(method: Method, rate: float, seed: int, steps: int = STEPS, told: torch.Tensor | None = None) -> Fitted:
    """Train a method, on the labels or on what a teacher `told`: its logits for all training images.

    `rates` among a method's settings is no knob: what the rate is multiplied by, by the end of a parameter's name.
    """
    base, data = task()
    knobs = dict(method.settings)
    times: dict[str, float] = knobs.pop("rates", {})
    model, trained, size = adapted(base, method._replace(settings=knobs), seed)
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in trained.items():
        groups.setdefault(next((t for end, t in times.items() if name.endswith(end)), 1.0), []).append(parameter)
    images, labels = data["train"]
    generator = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        outputs = model(images[chosen])
        if told is None:
            return functional.cross_entropy(outputs, labels[chosen])
        return softened(outputs, told[chosen], TEMPERATURE, divergence).mean()

    start_from(model, lambda: iter(loss, None))
    optimizer = torch.optim.AdamW([{"params": own} for own in groups.values()], lr=rate, weight_decay=0.0)
    highest = [rate * factor for factor in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps, pct_start=0.1)
    start, step = time.process_time(), 0
    while step < steps:
        step += 1
        now = loss()
        if not math.isfinite(now.item()):
            break
        now.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return Fitted(model, trained, size, (time.process_time() - start) / step * 1000)


def train(method: Method, rate: float, seed: int, steps: int = STEPS, told: torch.Tensor | None = None) -> Row:
    """One run: parameters, bytes, CPU ms per step, validation accuracy, and which test images are right at the end."""
    model, trained, size, taken = fit(method, rate, seed, steps, told)
    data = task()[1]
    with torch.no_grad():
        right = {split: model(data[split][0]).argmax(-1) == data[split][1] for split in ("validation", "test")}
    return {
        "run": key_of(method, rate, seed),
        "parameters": sum(parameter.numel() for parameter in trained.values()),
        "bytes": size,
        "step_ms": round(taken, 1),
        "validation": round(right["validation"].float().mean().item(), 4),
        "right": "".join("01"[hit] for hit in right["test"].tolist()),
    }


def grid(method: Method, runs: dict[str, Row]) -> tuple[float, ...]:
    """The next rates to try, given the runs on record."""
    best = _best(method, RATES, runs)
    return RATES if best not in BEYOND else (*RATES, BEYOND[best])


def best_rate(method: Method, runs: dict[str, Row]) -> float | None:
    """The rate with the best validation accuracy, once all rates are known; of equally good ones the smallest."""
    return _best(method, grid(method, runs), runs)


def _best(method: Method, rates: Sequence[float], runs: dict[str, Row]) -> float | None:
    rows = [runs.get(key_of(method, rate, SEEDS[0])) for rate in rates]
    found = [(row["validation"], -rate) for rate, row in zip(rates, rows, strict=True) if row]
    return -max(found)[1] if len(found) == len(rates) else None


def make(runs: Iterable[Run], pool: Executor) -> None:
    """Run missing runs."""
    RECORDS.make(train, {key_of(*run): run for run in runs}, pool)


def finished(asked: Iterable[Method], seeds: Sequence[int] = SEEDS) -> list[Rows]:
    """The methods that have all these seeds at their best rate."""
    runs, found = RECORDS.known(), []
    for method in asked:
        rate = best_rate(method, runs)
        rows = [runs[key_of(method, rate, seed)] for seed in seeds if rate and key_of(method, rate, seed) in runs]
        if rate and len(rows) == len(seeds):
            found.append(Rows(method, rate, rows))
    return found


def run(chosen: Sequence[Method], pool: Executor) -> None:
    """Run the missing runs of some methods."""
    for start in range(0, len(chosen), AT_ONCE):  # some methods to their end, then the next
        some = chosen[start : start + AT_ONCE]
        for _ in range(2):  # the grid, then beyond its ends
            have = RECORDS.known()
            make([(method, rate, SEEDS[0]) for method in some for rate in grid(method, have)], pool)
        best = [(method, best_rate(method, RECORDS.known())) for method in some]
        make([(method, rate, seed) for method, rate in best if rate for seed in SEEDS[1:]], pool)


def claims(found: list[Rows]) -> Claims:
    """LoRA of rank 1 and the methods compared with it, with their many seeds."""
    (lora,) = finished([LORA], MANY)
    return Claims(lora, [finished((rows.method for rows in group), MANY) for group in finalists(found)])


def costs() -> str:
    """In Markdown: the number of runs in each part, and the time of their steps."""
    lines = ["| | settings | runs | CPU-minutes |", "|---|---:|---:|---:|"]
    left = [(*json.loads(name), row["step_ms"]) for name, row in RECORDS.known().items()]
    for title, part in PARTS.items():
        asked = [list(method) for method in part]
        own = [run for run in left if run[0] in asked and run[2] in SEEDS]
        left = [run for run in left if run not in own]
        lines.append(_cost(f"`{title}`", len(part), [run[3] for run in own]))
    lines.append(_cost("ten seeds beside LoRA", len({str(run[0]) for run in left}), [run[3] for run in left]))
    return "\n".join(lines)


def _cost(title: str, settings: int, ms: list[float]) -> str:
    return f"| {title} | {settings} | {len(ms)} | {sum(ms) * STEPS / 60_000:.0f} |"


def places() -> pages.Places:
    """The generated parts of the page."""
    found = finished(compared())
    changes = [[finished(changed) for changed in part()] for part in (ablations, newer)]
    return evidence.places(found, claims(found), *changes) | {(evidence.PAGE, "time"): costs()}


def main() -> None:
    """Run missing runs, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts; default: all")
    parser.add_argument("--names", nargs="+", help="methods whose name has one of these in it")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default 2)")
    parser.add_argument("--list", action="store_true", help="show the missing runs and make none")
    options = parser.parse_args()
    asked = [method for name in options.only for method in PARTS[name]]
    chosen = [m for m in asked if not options.names or any(name in m.name for name in options.names)]
    if options.list:
        known = RECORDS.known()
        runs = [key_of(method, rate, SEEDS[0]) for method in chosen for rate in grid(method, known)]
        print("\n".join(run for run in runs if run not in known))
        return
    with processes(options.workers) as pool:
        run(chosen, pool)
        if len(found := finished(compared())) == len(compared()):
            finals = [rows for rows in found if rows.method == LORA] + list(chain(*finalists(found)))
            make([(rows.method, rows.rate, seed) for rows in finals for seed in MANY], pool)
    draw(finished(compared()))
    pages.fill(places())
    print(*places().values(), sep="\n\n")


if __name__ == "__main__":
    main()
