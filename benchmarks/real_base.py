"""Accuracy against parameters on a real pretrained base: ours, PEFT's methods, BitFit and the linear probe.

    python benchmarks/real_base.py --base vits14.safetensors --data data   # runs what is missing, fills the page
    python benchmarks/real_base.py --names LoRA probe                      # methods whose name has one of these in it
    python benchmarks/real_base.py --list                                  # which runs are missing as far as is known
    python benchmarks/real_base.py --fill                                  # page and picture alone

`few_shot.py` says what is trained: 1,000 images of Fashion-MNIST, a new head, 120 steps of 32. Every method has the
rate with the best validation accuracy at seed 0, searched outwards on one grid until its neighbours are worse, and then
five seeds. Runs are kept in records/few_shot.jsonl, which `transfer.py` shares. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import few_shot
import pages
from evidence import Difference, Rows
from few_shot import RECORDS, SEEDS, Run, make, share
from methods import OURS, Method, changed
from pictures import canvas, save
from recorded import Row, processes
from transfer import SCALED, VARIANTS, projected

DEFAULT, FEW = 0.03, (0, 1, 2)  # rate and seeds of what is compared at one rate
WEIGHTS = 24 * 384**2  # of q and v of all blocks
GRID = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
START = (0.01, 0.03)  # where the search for a rate begins
PAGE, PICTURE = pages.DOCS / "real-base.md", pages.DOCS / "real-base.svg"
PROBE = Method("plain", "linear probe", {})
LORA = Method("PEFT", "LoRA", {"r": 1})
MADE = "Made by `python benchmarks/real_base.py`."


def methods() -> list[Method]:
    """All of them, what matters most first: runs that end early leave the rest for another time."""
    peers = [
        Method("PEFT", "LoRA", {"r": 4}),
        *(Method("PEFT", "Uni-LoRA", {"r": 4, "theta_d_length": length}) for length in (128, 512, 2048, 8192)),
        *(Method("PEFT", "VeRA", {"r": rank}) for rank in (16, 256)),
        *(Method("PEFT", "FourierFT", {"n_frequency": count}) for count in (5, 20, 100, 500)),
        *(Method("PEFT", "TinyLoRA", {"r": 2, "u": count}) for count in (5, 40)),
        Method("PEFT", "LoKr", {"r": 1, "decompose_both": True}),
        Method("PEFT", "LoKr", {"r": 1}),
        Method("PEFT", "LoHa", {"r": 1}),
        Method("plain", "BitFit, q and v", {}),
        Method("plain", "BitFit, all biases", {}),
    ]
    ours = [
        *(_onehot(dim) for dim in (64, 128, 256, 512, 1024, 2048, 4096, 16384)),
        *(Method(OURS, "CP 4D", {"order": 4, "rank": rank, "core": "identity", **SCALED}) for rank in (1, 20, 40)),
        *(Method(OURS, "LoRTA 3D", {"method": "lorta", "rank": rank, **SCALED}) for rank in (1, 2, 16)),
        *(Method(OURS, "LoRTA 4D", {"method": "lorta", "order": 4, "rank": rank, **SCALED}) for rank in (2, 4, 8)),
        *(Method(OURS, "LoRTA 5D", {"method": "lorta", "order": 5, "rank": rank, **SCALED}) for rank in (1, 5)),
        Method(OURS, "2D", {"rank": 1, **SCALED}),
        Method(OURS, "2D, not folded", {"rank": 4, "fold": "none", **SCALED}),
        *(projected(ratio, alpha=2.0) for ratio in (0.1, 0.01)),
        Method(OURS, "LoRA", {"method": "lora", "rank": 1, **SCALED}),
        Method(OURS, "LoNKr", {"method": "lonkr", "rank": 4, **SCALED}),
    ]
    variants = [variant for variant in VARIANTS if "ratio" not in variant.settings]  # `ours` has those of this page
    return [PROBE, LORA, *variants, *(method for method in (*peers, *ours) if method not in variants)]


def _onehot(dim: int) -> Method:
    return Method(OURS, "one-hot", {"rank": 8, "inner": {"projection": "onehot", "dim": dim}, **SCALED})


def newer() -> Iterator[list[Method]]:
    """Plain settings, each followed by what multiplies the base, chooses positions, or starts from batches."""
    positions = ("sparse", "largest", "steepest")
    for dim, products in (
        (512, ("elementwise", "rows", "columns", "rotation", "magnitude")),
        (128, ("elementwise", "magnitude")),
    ):
        ratio = round(dim / WEIGHTS, 8)
        chosen = [{"method": "shira", "groups": 1, "projection": name, "ratio": ratio, **SCALED} for name in positions]
        yield [
            *changed("one-hot", _onehot(dim).settings, [{"multiply": name} for name in products]),
            *(Method(OURS, "chosen positions", settings) for settings in chosen),
        ]
    for rank in (1, 2):
        settings = {"order": 4, "rank": rank, "core": "identity", **SCALED}
        yield changed("CP 4D", settings, [{"init": "gradient"}])


def run(method: Method, rate: float, seed: int) -> Run:
    """A training on the real base; the probe has no rate but the head's."""
    return Run("vit_s", method, few_shot.HEAD_RATE if method == PROBE else rate, seed)


def rates(method: Method, known: dict[str, Row]) -> Iterator[float]:
    """The rates to try at seed 0: outwards from `START`, as far as those that are known do not tell the best one."""
    tried = set(START)
    while True:
        yield from sorted(tried)
        rows = {rate: known.get(run(method, rate, 0).key) for rate in tried}
        if method == PROBE or not all(rows.values()):
            return
        at = GRID.index(_best(rows))
        wanted = {GRID[i] for i in (at - 1, at + 1) if 0 <= i < len(GRID)} - tried
        if not wanted:
            return
        tried |= wanted


def best_rate(method: Method, known: dict[str, Row]) -> float | None:
    """The best rate, once its neighbours on the grid are known; of equals the smallest."""
    rows = {rate: known.get(run(method, rate, 0).key) for rate in set(rates(method, known))}
    return _best(rows) if all(rows.values()) else None


def _best(rows: dict[float, Any]) -> float:
    return max(rows, key=lambda rate: (share(rows[rate]["validation"]), -rate))


def missing(chosen: list[Method]) -> list[Run]:
    """The next runs of each method, as far as is known."""
    known, found = RECORDS.known(), []
    for method in chosen:
        rate = best_rate(method, known)
        wanted = [(r, 0) for r in rates(method, known)] if rate is None else [(rate, seed) for seed in SEEDS]
        found += [run(method, *each) for each in wanted if run(method, *each).key not in known]
    return list({r.key: r for r in found}.values())


def finished() -> list[Rows]:
    """Those methods whose best rate is known, with the seeds that are on record, from the first."""
    known, found = RECORDS.known(), []
    for method in methods():
        if (rate := best_rate(method, known)) is None:
            continue
        found.append(_rows(method, rate, [row for seed in SEEDS if (row := known.get(run(method, rate, seed).key))]))
    return found


def _rows(method: Method, rate: float, own: list[Row]) -> Rows:
    return Rows(method, rate, [{**row, "right": row["test"], "validation": share(row["validation"])} for row in own])


def references(found: list[Rows]) -> list[Rows | None]:
    """LoRA of rank 1 and the probe, with which all others are compared."""
    return [next((rows for rows in found if rows.method == method), None) for method in (LORA, PROBE)]


def table(found: list[Rows]) -> str:
    """In Markdown, by number of parameters; beside LoRA of rank 1 and the probe, paired over seeds and test images."""
    lora, probe = references(found)
    columns = ("adapter", "head", "<method", "<settings", "seeds", "validation", "test accuracy", "<least – most")
    lines = []
    for rows in sorted(found, key=lambda rows: (rows.parameters, -rows.accuracy)):
        method = rows.method
        cells = [f"{rows.parameters:,}", f"{rows.rows[0]['head']:,}", method.title]
        cells += [f"`{method.knobs}`" if method.settings else "", str(len(rows.rows))]
        cells += [f"{rows.validation:.3f}", f"{rows.accuracy:.3f}"]
        cells += [rows.spread, "" if method == PROBE else f"{rows.rate:g}"]
        for other in (probe, lora):
            cells.append(str(Difference.of(rows, other)) if other and other is not rows else "")
        lines.append(cells)
    return pages.table([*columns, "rate", "<over the probe", "<over LoRA r 1"], lines)


def claim(found: list[Rows]) -> str:
    """How many numbers reach LoRA's accuracy, in words."""
    lora, probe = references(found)
    if not lora or not probe:
        return ""
    said = [
        f"PEFT's LoRA of rank 1 has {lora.parameters:,} numbers beside the head's {lora.rows[0]['head']:,} and reaches "
        f"{lora.accuracy:.3f}; the head alone {probe.accuracy:.3f}."
    ]

    def add(what: str, rows: Rows) -> None:
        fewer = lora.parameters / rows.parameters
        said.append(
            f"{what}: {rows.method.name} with {rows.parameters:,} ({fewer:.1f} times fewer), {rows.accuracy:.3f}, "
            f"{Difference.of(rows, lora)} of LoRA's."
        )

    ours = [rows for rows in found if rows.method.ours]
    level = [rows for rows in ours if (behind := Difference.of(lora, rows)).mean <= behind.error]
    if level:
        add("The smallest of ours within one standard error", min(level, key=lambda rows: rows.parameters))
    tenth = [rows for rows in ours if rows.parameters <= lora.parameters / 10]
    if tenth:
        add("The best by validation of those with at most a tenth", max(tenth, key=lambda rows: rows.validation))
    return " ".join(said)


def first(found: list[Rows]) -> str:
    """The claim in one sentence, for README."""
    lora, probe = references(found)
    if not (lora and probe):
        return ""
    best = []
    for fraction in (4, 10):
        few = [rows for rows in found if rows.method.ours and rows.parameters <= lora.parameters / fraction]
        if not few:
            return ""
        best.append(max(few, key=lambda rows: rows.validation))
    more, fewer = best
    return (
        f"On a DINOv2 ViT-S with 1,000 images, {more.parameters:,} trained numbers ({more.method.name}) give a test "
        f"accuracy of {more.accuracy:.3f} and {fewer.parameters:,} ({fewer.method.name}) {fewer.accuracy:.3f}; PEFT's "
        f"LoRA of rank 1 gives {lora.accuracy:.3f} with {lora.parameters:,}, the head alone {probe.accuracy:.3f} "
        "(means of five seeds; [docs/real-base.md](docs/real-base.md))."
    )


def changes() -> str:
    """Every setting of `newer` beside its plain one, paired over seeds and test images, in Markdown."""
    known, lines = RECORDS.known(), []
    for group in newer():
        found = []
        for method in group:
            found.append(one := _rows(method, DEFAULT, [known[run(method, DEFAULT, seed).key] for seed in FEW]))
            change = "" if one is found[0] else str(Difference.of(one, found[0]))
            knobs, scores = f"`{one.method.knobs}`", [f"{one.validation:.3f}", f"{one.accuracy:.3f}"]
            lines.append([f"{one.parameters:,}", knobs, *scores, change])
    return pages.table(("adapter", "<settings", "validation", "test accuracy", "<change"), lines)


def draw(found: list[Rows]) -> None:
    """Accuracy against the adapter's parameters, the probe as a line; bars from the worst to the best seed."""
    from matplotlib import colormaps

    figure = canvas(8, 4.8)
    axes = figure.subplots()
    for rows in found:
        if rows.method == PROBE:
            axes.axhline(rows.accuracy, color="0.5", linestyle=":", label="linear probe")
    names = {(rows.method.ours, rows.method.name) for rows in found if rows.method != PROBE}
    for number, (ours, name) in enumerate(sorted(names, reverse=True)):
        own = sorted((r for r in found if (r.method.ours, r.method.name) == (ours, name)), key=lambda r: r.parameters)
        each = [rows.right.mean(1) for rows in own]
        spread = [[e.mean() - e.min() for e in each], [e.max() - e.mean() for e in each]]
        look = {"fmt": "o-", "lw": 1.0} if ours else {"fmt": "s--", "lw": 0.8}
        label = name if ours else f"{own[0].method.library} {name}"
        axes.errorbar([rows.parameters for rows in own], [e.mean() for e in each], spread, ms=5, label=label,
                      color=colormaps["tab20"](number), **look)  # fmt: skip
    axes.set(xscale="log", xlabel="trained parameters beside the head", ylabel="test accuracy, mean of the seeds")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, PICTURE)


def places() -> pages.Places:
    """What docs/real-base.md shows, from what is on record."""
    found = finished()
    return {
        (pages.ROOT / "README.md", "first"): first(found),
        (PAGE, "claim"): claim(found),
        (PAGE, "results"): f"{table(found)}\n\n{MADE}",
        (PAGE, "newer"): changes(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", help="methods whose name has one of these in it; or newer")
    parser.add_argument("--list", action="store_true", help="show the missing runs and make none")
    parser.add_argument("--fill", action="store_true", help="fill page and picture, and train nothing")
    few_shot.options(parser)
    options = parser.parse_args()
    chosen = [m for m in methods() if not options.names or any(name in m.name for name in options.names)]
    if options.list:
        print("\n".join(r.key for r in missing(chosen)))
        return
    if not options.fill:
        with processes(options.workers) as pool:
            while runs := missing(chosen):
                make(runs, options, pool)
            if not options.names or "newer" in options.names:
                runs = [run(method, DEFAULT, seed) for seed in FEW for group in newer() for method in group]
                make(runs, options, pool)
    draw(finished())
    pages.fill(places())
    print(*places().values(), sep="\n\n")


if __name__ == "__main__":
    main()
