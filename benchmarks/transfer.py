"""Does one learning rate fit? Eight variants at five rates on bases of four widths.

    python benchmarks/transfer.py --base vits14.safetensors --data data    # runs what is missing, fills docs/rates.md
    python benchmarks/transfer.py --only glyphs_vit                        # on one base
    python benchmarks/transfer.py --fill                                   # the page alone

`few_shot.py` says what is trained. Every rate has five seeds (vit768 one, the longest training two); a variant's best
rate is the one with the best mean validation accuracy. Runs are kept in records/few_shot.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import few_shot
import numpy as np
import pages
from few_shot import RECORDS, WORK, Run, make
from methods import OURS, Method
from recorded import Row, processes

from superlora_cli.adapter.config import RATE

RATES = (0.01, 0.03, 0.05, 0.1, 0.3)
PAGE = pages.DOCS / "rates.md"
SCALED = {"scaling": "weights"}


def projected(ratio: float, *, alpha: float) -> Method:
    """2D through a projection."""
    return Method(
        OURS, "2D, projected", {"rank": 4, "projection": "linear_v2", "ratio": ratio, "alpha": alpha, **SCALED}
    )


VARIANTS = [
    Method(OURS, "LoRA", {"method": "lora", "rank": 4, **SCALED}),
    Method(OURS, "LoKr", {"method": "lokr", "rank": 2, **SCALED}),
    Method(OURS, "2D", {"rank": 4, **SCALED}),
    projected(0.1, alpha=3.6),  # 2/ρ^¼, the default
    Method(OURS, "LoRTA 3D", {"method": "lorta", "rank": 4, **SCALED}),
    Method(OURS, "LoRTA 5D", {"method": "lorta", "order": 5, "rank": 3, **SCALED}),
    Method(OURS, "CP 4D", {"order": 4, "rank": 5, "core": "identity", **SCALED}),
    Method(OURS, "one-hot", {"rank": 8, "inner": {"projection": "onehot", "dim": 512}, **SCALED}),
]


def right(base: str, variant: Method, known: dict[str, Row]) -> dict[float, Any]:
    """Which validation images are right at each rate: (seeds, images), 0 or 1; only rates that have every seed."""
    found = {}
    for rate in RATES:
        rows = [known.get(Run(base, variant, rate, seed).key) for seed in WORK[base].seeds]
        if all(rows):
            found[rate] = np.array([[int(hit) for hit in row["validation"]] for row in rows if row], dtype=float)
    return found


def complete(base: str, known: dict[str, Row]) -> list[tuple[Method, dict[float, Any]]]:
    """Those of the variants that have every rate and seed, with what is right."""
    found = [(variant, right(base, variant, known)) for variant in VARIANTS]
    return [(variant, hits) for variant, hits in found if len(hits) == len(RATES)]


def fair(hits: dict[float, Any], rate: float) -> float:
    """As `loss`, but each seed is compared with the rate that is best for the others: what picking it would win."""
    seeds = range(len(hits[rate]))
    lost = []
    for seed in seeds:
        others = [other for other in seeds if other != seed]
        best = max(hits.values(), key=lambda own: own[others].mean())
        lost.append(best[seed].mean() - hits[rate][seed].mean())
    return statistics.mean(lost)


def loss(hits: dict[float, Any], rate: float) -> tuple[float, float]:
    """(Validation accuracy that `rate` loses against the best one, its standard error), paired over seeds and images.

    The best is picked by what it is then compared by, so a loss is never below 0 and is 0.00 to 0.01 too large.
    """
    lost = max(hits.values(), key=np.mean) - hits[rate]
    variance = lost.mean(0).var(ddof=1) / lost.shape[1] + (lost.mean(1).var(ddof=1) / len(lost) if len(lost) > 1 else 0)
    return float(lost.mean()), float(variance**0.5)


def places() -> pages.Places:
    """The tables of docs/rates.md, from what is on record."""
    known = RECORDS.known()
    rates = " | ".join(f"{rate:g}" for rate in RATES)
    lines = [f"| base | variant | parameters | {rates} | lost at the default |"]
    lines.append("|---|---|---:|" + "---:|" * len(RATES) + "---|")
    found = {base: complete(base, known) for base in WORK}
    for base, own in found.items():
        for variant, hits in own:
            cells = [f"{hits[rate].mean():.3f}" for rate in RATES]
            lost, error = loss(hits, RATE)
            count = known[Run(base, variant, RATE, 0).key]["parameters"]
            lines.append(f"| {base} | {variant.name} | {count:,} | {' | '.join(cells)} | {lost:.3f} ± {error:.3f} |")
    lines += ["", f"| lost on average (at worst) | {rates} |", "|---|" + "---:|" * len(RATES)]
    for how, measure in (("", lambda hits, rate: loss(hits, rate)[0]), (", the best picked by the other seeds", fair)):
        for base, own in found.items():
            if own and (measure is not fair or len(WORK[base].seeds) > 1):
                lost_at = [[measure(hits, rate) for _, hits in own] for rate in RATES]
                cells = [f"{statistics.mean(each):.3f} ({max(each):.3f})" for each in lost_at]
                lines.append(f"| {base}{how} | {' | '.join(cells)} |")
    return {(PAGE, "transfer"): "\n".join(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK), help="bases")
    parser.add_argument("--fill", action="store_true", help="fill the page, and train nothing")
    few_shot.options(parser)
    chosen = parser.parse_args()
    if not chosen.fill:
        of = [(base, seed) for base in chosen.only for seed in WORK[base].seeds]
        runs = [Run(base, variant, rate, seed) for base, seed in of for rate in RATES for variant in VARIANTS]
        with processes(chosen.workers) as pool:
            make(runs, chosen, pool)
    if PAGE.exists():
        pages.fill(places())
    print(*places().values(), sep="\n")


if __name__ == "__main__":
    main()
