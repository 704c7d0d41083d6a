"""Accuracy against bytes: adapters of a few bits a number on the task of head_to_head.py.

    python benchmarks/bytes.py              # runs what is missing, most important first; fills docs/bytes.md
    python benchmarks/bytes.py --list       # what is missing
    python benchmarks/bytes.py --workers 2
    python benchmarks/bytes.py --base vits14.safetensors --data data     # the runs on the real base, too

Settings of ours are trained as in head_to_head.py, whose records the other methods' lines are from, at 4 bytes a
number. The rate is the one of the page's ablation. Results are kept in records/bytes.jsonl, one run a line; those on
the real base are trained as in real_base.py, and kept in records/few_shot.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Any, NamedTuple
from unittest.mock import patch

import few_shot
import head_to_head
import pages
import torch
from evidence import LORA, Difference, Rows
from evidence import OURS as COLOUR
from recorded import Records, Row, key_of, processes
from rivals import OURS, Adapted, Method, adapted
from torch import Tensor, nn

from superlora_cli.adapter import initial, inner, quantized
from superlora_cli.adapter.shapes import number_bytes

BI_LORA = {"method": "lora", "rank": 1, "scaling": "weights", "alpha": 2.0, "bits": 1}
RECORDS = Records("bytes.jsonl", itemgetter("run"))
PAGE, PICTURE = pages.DOCS / "bytes.md", pages.DOCS / "bytes.svg"
RATE, SEEDS, MANY = 0.26, (0, 1, 2), tuple(range(10))
RATES = (RATE, 0.15, 0.1)  # that the setting of the claim has many seeds at
NORMAL = "normal start"
SPREAD = "spacing"  # times the one of `quantized.SPACING`
TRAINED = "trained spacing"
PATCHES = (NORMAL, SPREAD, TRAINED)  # what is tried and is no knob


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


class Run(NamedTuple):
    """A setting, its rate, and a seed."""

    method: Method
    rate: float
    seed: int
    steps: int = head_to_head.STEPS

    @property
    def key(self) -> str:
        longer = [self.steps] if self.steps != head_to_head.STEPS else []
        return key_of(self.method.name, self.method.settings, self.rate, self.seed, *longer)


def onehot(dim: int, bits: int | None, **more: Any) -> Method:
    """One square matrix of rank 8 of all weights, whose entries are `dim` shared numbers."""
    knobs = {
        "rank": 8,
        "inner": {"projection": "onehot", "dim": dim},
        "alpha": 0.33,
        **({"bits": bits} if bits else {}),
    }
    return Method(OURS, "2D one-hot", knobs | more)


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
PEERS = ("LoRA", "Uni-LoRA", "VeRA", "FourierFT", "LoKr", "VB-LoRA", "LoHa")


def wanted() -> list[Run]:
    """All runs, the most important first."""
    runs = [Run(CLAIM, RATE, seed) for seed in SEEDS]
    runs += [Run(method, rate, seed) for method, rate in COMPARED[1:6] for seed in SEEDS]
    runs += [Run(CLAIM, rate, seed) for rate in RATES for seed in MANY]
    runs += [Run(LARGER, rate, seed) for rate in (RATE, 0.1) for seed in MANY]
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
    settings = {name: value for name, value in run.method.settings.items() if name not in PATCHES}
    tried = {name: value for name, value in run.method.settings.items() if name in PATCHES}
    with ExitStack() as stack:
        for name, value in tried.items():
            stack.enter_context({NORMAL: _normal, SPREAD: _spread, TRAINED: _trained}[name](value))
        row = head_to_head.train(run.method._replace(settings=settings), run.rate, run.seed, run.steps)
    numbers = number_bytes((row["parameters"],), settings.get("bits"))
    return {**row, "run": run.key, "numbers": numbers}


@contextmanager
def _normal(scale: float) -> Iterator[None]:
    """θ starts from normal numbers."""
    before = initial._initial_theta

    def theta(plan: Any) -> Tensor:
        return scale * torch.randn(before(plan).shape, generator=torch.Generator().manual_seed(plan.config.seed))

    with patch.object(initial, "_initial_theta", theta):
        yield


@contextmanager
def _spread(times: float) -> Iterator[None]:
    """Levels further apart, or nearer."""
    with patch.dict(quantized.SPACING, {bits: times * each for bits, each in quantized.SPACING.items()}):
        yield


@contextmanager
def _trained(speed: float) -> Iterator[None]:
    """The spacing is trained, in steps of `speed` times the rate (LSQ, arXiv 1902.08153): s · exp(speed · p)."""
    power = nn.Parameter(torch.zeros(()))

    def made(plan: Any, params: Any) -> dict[str, Tensor]:
        (theta,), (spacing,) = params.values(), quantized.scales(plan).values()
        free = theta.requires_grad  # what is taken off for the start keeps the spacing of the start
        return {"theta": _Levels.apply(theta, spacing * torch.exp(speed * power * free), plan.config.bits)}

    def with_power(base: nn.Module, method: Method, seed: int) -> Adapted:
        found = adapted(base, method, seed)
        with torch.no_grad():
            power.zero_()
        return found._replace(trained={**found.trained, "power": power})

    with patch.object(inner, "quantized", made), patch.object(head_to_head, "adapted", with_power):
        yield


class _Levels(torch.autograd.Function):
    """The nearest levels; straight-through for the numbers, and the spacing's own gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, spacing: Tensor, bits: int) -> Tensor:
        half = 2 ** (bits - 1)
        level = (values / spacing).floor().clamp(-half, half - 1) + 0.5
        inside = (values / spacing).abs() <= half
        ctx.save_for_backward(torch.where(inside, level - values / spacing, level))
        ctx.share = (values.numel() * half) ** -0.5
        return level * spacing

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (change,) = ctx.saved_tensors
        return gradient, (gradient * change).sum() * ctx.share, None


def finished(method: Method, rate: float, seeds: Sequence[int] = SEEDS, steps: int = head_to_head.STEPS) -> Rows | None:
    """A setting with all these seeds; None where one is missing."""
    have = RECORDS.known()
    rows = [have.get(Run(method, rate, seed, steps).key) for seed in seeds]
    return Rows(method, rate, [row for row in rows if row]) if all(rows) else None


def long_rate(method: Method, rates: Sequence[float]) -> float | None:
    """The rate with the best validation accuracy over `SEEDS` after `LONG` steps; None where a run is missing."""
    found = [finished(method, rate, SEEDS, LONG) for rate in rates]
    return max((rows.validation, rows.rate) for rows in found if rows)[1] if all(found) else None


def size(rows: Rows) -> int:
    """Bytes of the numbers, 4 each where nothing else is on record."""
    return int(rows.rows[0].get("numbers", 4 * rows.parameters))


def ours() -> list[Rows]:
    """What is in the table of ours."""
    return [rows for method, rate in COMPARED if (rows := finished(method, rate))]


def peers() -> list[Rows]:
    """The other libraries' methods, as head_to_head.py found them."""
    asked = [method for method in head_to_head.compared() if not method.ours and method.name in PEERS]
    return head_to_head.finished(asked)


def lora(seeds: Sequence[int]) -> Rows:
    """PEFT's LoRA of rank 1."""
    return head_to_head.finished([head_to_head.LORA], seeds)[0]


def claim() -> str:
    """The claims' settings beside LoRA of rank 1, each with as many seeds as there are."""
    lines = [f"PEFT's LoRA of rank 1 reaches {lora(MANY).accuracy:.3f} with {size(lora(MANY)):,} bytes of numbers."]
    for method in (CLAIM, LARGER):
        seeds = MANY if finished(method, RATE, MANY) else SEEDS
        own, other = finished(method, RATE, seeds), lora(seeds)
        assert own is not None
        each = own.right.mean(1)
        fewer, reach = size(other) // size(own), f"{own.accuracy:.3f} ({each.min():.3f} – {each.max():.3f})"
        numbers = (
            f"{own.parameters:,} numbers of {method.settings['bits']} bits, {size(own):,} bytes, 1/{fewer} of that"
        )
        lines.append(f"{numbers}, reach {reach}: {Difference.of(own, other)} beside it, over {len(seeds)} seeds.")
    return "\n".join(lines)


def longer() -> str:
    """The claim's setting beside LoRA of rank 1, both after `LONG` steps."""
    lines = ["| bytes of numbers | | steps | rate | validation | test accuracy | of 10 seeds | |"]
    lines.append("|---:|---|---:|---:|---:|---:|---|---|")
    by_steps = {head_to_head.STEPS: [lora(MANY), finished(CLAIM, RATE, MANY)]}
    by_steps[LONG] = [finished(method, long_rate(method, rates) or 0, MANY, LONG) for method, rates in LONGER]
    for steps, pair in by_steps.items():
        for rows in pair:
            assert rows is not None
            assert pair[0] is not None
            each, name = rows.right.mean(1), f"**{rows.method.name}**" if rows.method.ours else "PEFT LoRA, r 1"
            cells = [f"{size(rows):,}", name, str(steps), f"{rows.rate:g}", f"{rows.validation:.3f}"]
            cells += [f"{rows.accuracy:.3f}", f"{each.min():.3f} – {each.max():.3f}"]
            lines.append(f"| {' | '.join([*cells, '' if rows is pair[0] else str(Difference.of(rows, pair[0]))])} |")
    return "\n".join(lines)


def table() -> str:
    """Ours and the peers' by bytes."""
    lines = ["| bytes of numbers | numbers | | settings | test accuracy | of 3 seeds |", "|---:|---:|---|---|---:|---|"]
    for rows in sorted([*ours(), *peers()], key=lambda rows: (size(rows), -rows.accuracy)):
        each, name = rows.right.mean(1), rows.method.name
        name = f"**{name}**" if rows.method.ours else f"{rows.method.library} {name}"
        cells = [f"{size(rows):,}", f"{rows.parameters:,}", name, f"`{rows.method.knobs}`", f"{rows.accuracy:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {each.min():.3f} – {each.max():.3f} |")
    return "\n".join(lines)


def ablation() -> str:
    """The claim's setting with one thing changed."""
    base = finished(CLAIM, RATE)
    assert base is not None
    lines = ["| | changed | bytes | validation | test accuracy | change |", "|---|---|---:|---:|---:|---|"]
    lines.append(
        f"| | none: `{CLAIM.knobs}`, rate {RATE} | {size(base)} | {base.validation:.3f} | {base.accuracy:.3f} | |"
    )
    for title, settings in ABLATED.items():
        for method, rate in settings:
            if rows := finished(method, rate):
                cells = [
                    title,
                    _change(method, rate),
                    f"{size(rows)}",
                    f"{rows.validation:.3f}",
                    f"{rows.accuracy:.3f}",
                ]
                lines.append(f"| {' | '.join(cells)} | {Difference.of(rows, base)} |")
    return "\n".join(lines)


def _change(method: Method, rate: float) -> str:
    if rate != RATE:
        return f"rate {rate:g}"
    other = {name: value for name, value in method.settings.items() if value != CLAIM.settings.get(name)}
    words = {NORMAL: "normal numbers", TRAINED: "trained (LSQ)", SPREAD: f"{method.settings.get(SPREAD)} times as far"}
    return ", ".join(words.get(name) or f"`{Method(OURS, '', {name: value}).knobs}`" for name, value in other.items())


def on_the_real_base() -> list[list[few_shot.Run]]:
    """The runs of `REAL`, 3 bits a number."""
    found = []
    for dim, alpha, rate, seeds in REAL:
        knobs = {"rank": 8, "inner": {"projection": "onehot", "dim": dim}, "scaling": "weights", "alpha": alpha}
        method = Method(OURS, "one-hot", {**knobs, "bits": 3})
        found.append([few_shot.Run("vit_s", method, rate, seed) for seed in seeds])
    return found


def real_table() -> str:
    """What came of them."""
    have = few_shot.RECORDS.known()
    lines = ["| numbers | bytes of numbers | alpha | rate | seeds | validation | test accuracy |"]
    lines.append("|---:|---:|---:|---:|---|---:|---:|")
    for runs in on_the_real_base():
        rows = [have[run.key] for run in runs if run.key in have]
        if rows:
            settings = runs[0].method.settings
            numbers = number_bytes((rows[0]["parameters"],), settings["bits"])
            shares = [statistics.mean(few_shot.share(row[split]) for row in rows) for split in ("validation", "test")]
            cells = [f"{rows[0]['parameters']:,}", f"{numbers:,}", f"{settings['alpha']:g}", f"{runs[0].rate:g}"]
            cells += [str(len(rows)), *(f"{share:.3f}" for share in shares)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw() -> None:
    """Accuracy against bytes, ours a line a number of bits."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "superlora"
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    groups: dict[str, list[Rows]] = {}
    for rows in ours():
        bits = rows.method.settings.get("bits", 32)
        groups.setdefault(
            f"superlora, {bits} bits" if "one-hot" in rows.method.name else "superlora, others", []
        ).append(rows)
    for rows in peers():
        groups.setdefault(f"{rows.method.library} {rows.method.name}", []).append(rows)
    for number, (label, own) in enumerate(groups.items()):
        own.sort(key=size)
        mine = label.startswith("superlora")
        look = {"marker": "o", "color": COLOUR, "alpha": 1 - 0.12 * number} if mine else {"marker": "s", "ms": 4}
        axes.plot([size(r) for r in own], [r.accuracy for r in own], lw=0.8, label=label, **look)  # type: ignore[arg-type]
    axes.set(xscale="log", xlabel="bytes of numbers", ylabel="test accuracy, mean of 3 seeds", ylim=(0.6, 1.0))
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
    figure.savefig(PICTURE, metadata={"Date": None})


def places() -> pages.Places:
    """What the page shows."""
    found = {"claim": claim(), "longer": longer(), "results": table(), "ablation": ablation(), "real": real_table()}
    return {(PAGE, place): text for place, text in found.items()}


def main() -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    few_shot.options(parser)
    parser.add_argument("--list", action="store_true", help="show the missing runs and make none")
    options = parser.parse_args()
    if options.list:
        print("\n".join(run.key for run in missing()))
        return
    with processes(options.workers) as pool:
        while runs := missing():
            RECORDS.make(train, {run.key: (run,) for run in runs}, pool)
        if options.base:
            few_shot.make([run for runs in on_the_real_base() for run in runs], options, pool)
    draw()
    pages.fill(places())
    print(*places().values(), sep="\n\n")


if __name__ == "__main__":
    main()
