"""Tables and picture of docs/bytes.md, from the runs of `bytes_runs.py` on record."""

from __future__ import annotations

import statistics

import few_shot
import head_to_head
import pages
from bytes_runs import (
    ABLATED,
    CLAIM,
    COMPARED,
    LARGER,
    LONG,
    LONGER,
    MANY,
    RATE,
    TAUGHT,
    TWENTY,
    finished,
    long_rate,
    lora,
    on_the_real_base,
)
from bytes_tried import NORMAL, SPREAD, TRAINED
from evidence import OURS as COLOUR
from evidence import Difference, Rows
from methods import OURS, Method
from pictures import canvas, save

from superlora_cli.adapter.shapes import number_bytes

PICTURE = pages.DOCS / "bytes.svg"
PEERS = ("LoRA", "Uni-LoRA", "VeRA", "FourierFT", "LoKr", "VB-LoRA", "LoHa")


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


def claim() -> str:
    """The claims' settings beside LoRA of rank 1."""
    other = lora(TWENTY)
    lines = [f"PEFT's LoRA of rank 1 reaches {other.accuracy:.3f} with {size(other):,} bytes of numbers."]
    for method in (CLAIM, LARGER):
        own = finished(method, RATE, TWENTY)
        assert own is not None
        numbers = f"{own.parameters:,} numbers of {method.settings['bits']} bits, {size(own):,} bytes"
        reach = f"1/{size(other) // size(own)} of that, reach {own.accuracy:.3f} ({own.spread})"
        lines.append(f"{numbers}, {reach}: {Difference.of(own, other)} beside it, over {len(TWENTY)} seeds.")
    for method, rate, steps in TAUGHT:
        taught = finished(method, rate, TWENTY, steps, taught=True)
        assert taught is not None
        name = f"these {size(taught)} bytes reach" if method is CLAIM else "LoRA of rank 1 reaches"
        reach = f"{taught.accuracy:.3f} ({taught.spread}): {Difference.of(taught, other)} beside LoRA above"
        few, same = finished(method, rate, MANY, steps, taught=True), finished(method, rate, MANY, steps)
        same = same or lora(MANY)  # its usual steps are on another record
        assert few is not None
        gain = f"{Difference.of(few, same)} beside itself on the labels, over {len(MANY)} seeds"
        lines.append(f"Taught by LoRA of rank 4 for {steps} steps, {name} {reach}; {gain}.")
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
            name = rows.method.title if rows.method.ours else "PEFT LoRA, r 1"
            cells = [f"{size(rows):,}", name, str(steps), f"{rows.rate:g}", f"{rows.validation:.3f}"]
            cells += [f"{rows.accuracy:.3f}", rows.spread]
            lines.append(f"| {' | '.join([*cells, '' if rows is pair[0] else str(Difference.of(rows, pair[0]))])} |")
    return "\n".join(lines)


def table() -> str:
    """Ours and the peers' by bytes."""
    lines = ["| bytes of numbers | numbers | | settings | test accuracy | of 3 seeds |", "|---:|---:|---|---|---:|---|"]
    for rows in sorted([*ours(), *peers()], key=lambda rows: (size(rows), -rows.accuracy)):
        cells = [
            f"{size(rows):,}",
            f"{rows.parameters:,}",
            rows.method.title,
            f"`{rows.method.knobs}`",
            f"{rows.accuracy:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} | {rows.spread} |")
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
                cells = [title, _change(method, rate), f"{size(rows)}", f"{rows.validation:.3f}"]
                cells.append(f"{rows.accuracy:.3f}")
                lines.append(f"| {' | '.join(cells)} | {Difference.of(rows, base)} |")
    return "\n".join(lines)


def _change(method: Method, rate: float) -> str:
    if rate != RATE:
        return f"rate {rate:g}"
    other = {name: value for name, value in method.settings.items() if value != CLAIM.settings.get(name)}
    words = {NORMAL: "normal numbers", TRAINED: "trained (LSQ)", SPREAD: f"{method.settings.get(SPREAD)} times as far"}
    return ", ".join(words.get(name) or f"`{Method(OURS, '', {name: value}).knobs}`" for name, value in other.items())


def real_table() -> str:
    """What came of them."""
    have, lines = few_shot.RECORDS.known(), []
    for runs in on_the_real_base():
        rows = [have[run.key] for run in runs if run.key in have]
        if rows:
            settings = runs[0].method.settings
            numbers = number_bytes((rows[0]["parameters"],), settings["bits"])
            shares = [statistics.mean(few_shot.share(row[split]) for row in rows) for split in ("validation", "test")]
            cells = [f"{rows[0]['parameters']:,}", f"{numbers:,}", f"{settings['alpha']:g}", f"{runs[0].rate:g}"]
            lines.append([*cells, str(len(rows)), *(f"{share:.3f}" for share in shares)])
    columns = ("numbers", "bytes of numbers", "alpha", "rate", "<seeds", "validation", "test accuracy")
    return pages.table(columns, lines)


def draw() -> None:
    """Accuracy against bytes, ours a line a number of bits."""
    figure = canvas(9, 5)
    axes = figure.subplots()
    groups: dict[str, list[Rows]] = {}
    for rows in ours():
        kind = f"{rows.method.settings['bits']} bits" if "one-hot" in rows.method.name else "others"
        groups.setdefault(f"superlora, {kind}", []).append(rows)
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
    save(figure, PICTURE)
