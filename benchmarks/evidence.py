"""Results of the head-to-head comparison: table, picture and findings of docs/evidence.md."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import numpy as np
import pages
from methods import Method
from pictures import canvas, name_points, save

PAGE, PICTURE = pages.DOCS / "evidence.md", pages.DOCS / "evidence.svg"
README = pages.ROOT / "README.md"
OURS = "#c2410c"
BUDGETS = (64, 128, 256, 512, 1024, 2048)
RANGE = (50, 3000)  # parameters between which no peer is to be above our front
SURE = 2.0  # standard errors
FINALISTS = 4  # settings for each, by validation; these have more seeds, and the best by validation is shown
LORA = Method("PEFT", "LoRA", {"r": 1})
FRACTIONS = (3, 5, 10)  # how many times fewer parameters than weight-wise LoRA of rank 1 the claims are about


class Rows(NamedTuple):
    """A method's runs at its best learning rate, one per seed."""

    method: Method
    rate: float
    rows: list[dict[str, Any]]

    @property
    def parameters(self) -> int:
        return int(self.rows[0]["parameters"])

    @property
    def right(self) -> np.ndarray[Any, Any]:
        """Which test images are classified correctly: (seeds, images), 0 or 1."""
        return np.array([[int(hit) for hit in row["right"]] for row in self.rows])

    @property
    def accuracy(self) -> float:
        """On the test split, mean over the seeds."""
        return float(self.right.mean())

    @property
    def spread(self) -> str:
        """The worst and the best seed's test accuracy."""
        each = self.right.mean(1)
        return f"{each.min():.3f} – {each.max():.3f}"

    @property
    def validation(self) -> float:
        """Accuracy on the validation split, mean over the seeds."""
        return statistics.mean(row["validation"] for row in self.rows)


class Difference(NamedTuple):
    """How much more often one method is right than another, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, one: Rows, other: Rows) -> Difference:
        """Paired over seeds and test images, both treated as samples; with one seed, over the images only.

        >>> row = lambda right: Rows(None, 0.1, [{"parameters": 1, "right": right}] * 3)
        >>> Difference.of(row("1100"), row("1100"))
        Difference(mean=0.0, error=0.0)
        """
        seeds = min(len(one.rows), len(other.rows))
        own = (one.right[:seeds] - other.right[:seeds]).astype(float)
        variance = own.mean(0).var(ddof=1) / own.shape[1]
        variance += own.mean(1).var(ddof=1) / seeds if seeds > 1 else 0
        return cls(float(own.mean()), float(variance**0.5))

    def __abs__(self) -> Difference:
        return Difference(abs(self.mean), self.error)

    @property
    def clear(self) -> bool:
        """Whether the difference is more than `SURE` standard errors above 0."""
        return self.mean > SURE * self.error and self.mean > 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def front(found: list[Rows]) -> list[Rows]:
    """Our Pareto front by validation accuracy: the settings one would choose without the test split."""
    best: list[Rows] = []
    for rows in sorted((rows for rows in found if rows.method.ours), key=lambda rows: rows.parameters):
        if not best or rows.validation > best[-1].validation:
            best = [*(b for b in best if b.parameters < rows.parameters), rows]
    return best


def at_most(chosen: list[Rows], parameters: int) -> Rows | None:
    """Ours on the front for a number of parameters."""
    return next((rows for rows in reversed(chosen) if rows.parameters <= parameters), None)


def table(found: list[Rows]) -> str:
    """In Markdown, by number of parameters; for peers also the difference from our front at that size."""
    chosen = front(found)
    columns = ("parameters", "<method", "<settings", "test accuracy", "<of 3 seeds", "bytes", "ms a step", "rate")
    lines = []
    for rows in sorted(found, key=lambda rows: (rows.parameters, -rows.accuracy)):
        method = rows.method
        own = at_most(chosen, rows.parameters)
        above = "on it" if rows in chosen else ""
        if own is not None and not method.ours:
            difference = Difference.of(rows, own)
            above = f"{difference}{', clearly' if difference.clear else ''}"
        ms = statistics.median(row["step_ms"] for row in rows.rows)
        cells = [
            f"{rows.parameters:,}",
            method.title,
            f"`{method.knobs}`" if method.settings else "",
            f"{rows.accuracy:.3f}",
        ]
        cells += [rows.spread, f"{rows.rows[0]['bytes']:,}", f"{ms:.0f}", f"{rows.rate:g}"]
        lines.append([*cells, above])
    return pages.table([*columns, "<over our front"], lines)


def at_budgets(found: list[Rows]) -> str:
    """In Markdown: for some budgets, our front with its knobs, and the best peer with at most that many parameters."""
    chosen = front(found)
    lines = []
    for budget in BUDGETS:
        own = at_most(chosen, budget)
        peers = [rows for rows in found if not rows.method.ours and rows.parameters <= budget]
        if own is None or not peers:
            continue
        peer = max(peers, key=lambda rows: rows.accuracy)
        cells = [f"{budget:,}", _named(own), f"`{own.method.knobs}`", f"{own.accuracy:.3f}"]
        cells += [f"{peer.method.library} {_named(peer)}", f"{peer.accuracy:.3f}", str(Difference.of(own, peer))]
        lines.append(cells)
    columns = ("at most", "<ours", "<knobs", "test accuracy", "<best peer", "test accuracy", "<ours over it")
    return pages.table(columns, lines)


def above_the_front(found: list[Rows]) -> str:
    """Which peers are, in words."""
    chosen = front(found)
    peers = [r for r in found if not r.method.ours and RANGE[0] <= r.parameters <= RANGE[1]]
    above = []
    for rows in peers:
        own = at_most(chosen, rows.parameters)
        if own is not None and (difference := Difference.of(rows, own)).clear:
            above.append(f"{rows.method.library} {_named(rows)} ({difference} against {_named(own)})")
    them = f"the {len(peers)} peer settings with {RANGE[0]} to {RANGE[1]:,} parameters"
    if not above:
        return f"None of {them} is more than two standard errors above our front."
    return f"Of {them}, these are more than two standard errors above our front: {'; '.join(above)}."


def finalists(found: list[Rows]) -> list[list[Rows]]:
    """For each of `FRACTIONS` of LoRA's parameters: our best with at most that many and more than half as many."""
    (lora,) = (rows for rows in found if rows.method == LORA)
    groups = []
    for fraction in FRACTIONS:
        most = lora.parameters / fraction
        own = [rows for rows in found if rows.method.ours and most / 2 < rows.parameters <= most]
        groups.append(sorted(own, key=lambda rows: -rows.validation)[:FINALISTS])
    return groups


class Claims(NamedTuple):
    """LoRA of rank 1 and the finalists for each of `FRACTIONS`, with their many seeds."""

    lora: Rows
    finals: list[list[Rows]]

    @property
    def chosen(self) -> list[Rows]:
        """The best of the finalists for each, by validation."""
        return [max(group, key=lambda rows: rows.validation) for group in self.finals]


def beside_lora(claims: Claims) -> str:
    """In Markdown: LoRA, and how all finalists compare with it; the choice by validation is in bold."""
    lora, finals = claims.lora, {rows.method.knobs: rows for group in claims.finals for rows in group}
    seeds = f"test accuracy, {len(lora.rows)} seeds"
    titles = f"| parameters | | method | validation | {seeds} | least – most | beside LoRA |"
    lines = [titles, "|---:|---|---|---:|---:|---|---|"]
    lines.append(_beside(lora, "", "PEFT LoRA of rank 1", ""))
    chosen = [rows.method for rows in claims.chosen]
    for rows in sorted(finals.values(), key=lambda rows: (-rows.parameters, -rows.validation)):
        name = f"**{rows.method.name}**" if rows.method in chosen else rows.method.name
        difference = Difference.of(rows, lora)
        clear = ", clearly" if abs(difference).clear else ""
        fewer = f"{lora.parameters / rows.parameters:.1f} times fewer"
        lines.append(_beside(rows, fewer, f"{name}, `{rows.method.knobs}`", f"{difference}{clear}"))
    return "\n".join(lines)


def _beside(rows: Rows, fewer: str, title: str, beside: str) -> str:
    cells = [f"{rows.parameters:,}", fewer, title, f"{rows.validation:.3f}", f"{rows.accuracy:.3f}"]
    return "| " + " | ".join([*cells, rows.spread, beside]) + " |"


def summary(found: list[Rows], claims: Claims) -> str:
    """README's sentences."""
    lora = claims.lora
    ours = sum(rows.method.ours for rows in found)
    others = len(found) - ours
    (probe,) = (rows for rows in found if rows.method.name == "linear probe")
    reached = ", ".join(f"{rows.accuracy:.3f} with {rows.parameters:,}" for rows in claims.chosen)
    return (
        f"[docs/evidence.md](docs/evidence.md) has {ours} settings of ours and {others} of PEFT, LyCORIS and\n"
        "plain tuning on the same work, every one with its best learning rate of the same grid. PEFT's LoRA of rank 1\n"
        f"reaches {lora.accuracy:.3f} with {lora.parameters:,} parameters (mean of {len(lora.rows)} seeds),\n"
        f"ours {reached}. A linear probe, the head alone, reaches {probe.accuracy:.3f} with {probe.parameters}.\n"
        f"{above_the_front(found)}"
    )


def ablated(changed: list[Rows]) -> str:
    """In Markdown: one of ours, and the effect of each change."""
    base, *others = changed
    said = f"`{base.method.knobs}`: {base.parameters:,} parameters, {base.accuracy:.3f} at rate {base.rate:g}."
    lines = []
    for rows in others:
        new = {key: value for key, value in rows.method.settings.items() if base.method.settings.get(key) != value}
        clear = ", clearly" if abs(difference := Difference.of(rows, base)).clear else ""
        cells = [f"{rows.parameters:,}", f"{rows.accuracy:.3f}", f"{difference}{clear}", f"{rows.rate:g}"]
        lines.append([f"`{rows.method._replace(settings=new).knobs}`", *cells])
    return f"{said}\n\n{pages.table(('<changed', 'parameters', 'test accuracy', '<difference', 'rate'), lines)}"


def _named(rows: Rows) -> str:
    return f"{rows.method.name} with {rows.parameters:,}"


def draw(found: list[Rows]) -> None:
    """Accuracy against parameters: ours as points with their front, one line per peer method, bars over the seeds."""
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, NullLocator

    figure = canvas(10, 6)
    axes = figure.subplots()
    peers = sorted({(rows.method.library, rows.method.name) for rows in found if not rows.method.ours})
    for number, (library, name) in enumerate(peers):
        own = [rows for rows in found if (rows.method.library, rows.method.name) == (library, name)]
        _points(axes, own, f"{library} {name}", fmt="s-" if number % 2 else "^-", color=colormaps["tab20"](number))
    _points(axes, [rows for rows in found if rows.method.ours], "superlora", fmt="o", color=OURS)
    chosen = front(found)
    at, reached = [rows.parameters for rows in chosen], [rows.accuracy for rows in chosen]
    axes.plot(at, reached, color=OURS, lw=1.5, label="superlora, front by validation")
    axes.set(xscale="log", xlabel="trained parameters", ylabel="test accuracy, mean of 3 seeds", ylim=(0.6, 1.0))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
    names = [(rows.parameters, rows.accuracy, rows.method.name) for rows in chosen]
    name_points(axes, names, avoid=[(rows.parameters, rows.accuracy) for rows in found], fontsize=7, color=OURS)
    save(figure, PICTURE)


def _points(axes: Any, own: list[Rows], label: str, *, fmt: str, color: Any) -> None:
    """Means, with bars from the worst to the best seed."""
    own = sorted(own, key=lambda rows: rows.parameters)
    each = [rows.right.mean(1) for rows in own]
    spread = [[r.accuracy - e.min() for r, e in zip(own, each, strict=True)],
              [e.max() - r.accuracy for r, e in zip(own, each, strict=True)]]  # fmt: skip
    at = [rows.parameters for rows in own]
    axes.errorbar(at, [r.accuracy for r in own], spread, fmt=fmt, ms=5, lw=0.8, color=color, label=label)


def places(found: list[Rows], claims: Claims, changes: list[list[Rows]], newer: list[list[Rows]]) -> pages.Places:
    """The generated parts of the page: findings, tables, ablations and newer ideas."""
    made = "Made by `python benchmarks/head_to_head.py`."
    tables = f"{at_budgets(found)}\n\nAll of them:\n\n{table(found)}"
    results = f"{beside_lora(claims)}\n\n{above_the_front(found)}\n\n{tables}\n\n{made}"
    changed, new = ("\n\n".join(ablated(rows) for rows in part if len(rows) > 1) for part in (changes, newer))
    return {
        (PAGE, "results"): results,
        (PAGE, "ablations"): changed,
        (PAGE, "newer"): new,
        (README, "evidence"): summary(found, claims),
    }
