"""Does one learning rate fit? Eight variants at five rates on bases of three widths.

    python benchmarks/transfer.py --base vits14.safetensors --data data    # runs what is missing, fills docs/rates.md
    python benchmarks/transfer.py --only glyphs_vit                        # on one base
    python benchmarks/transfer.py --fill                                   # the page alone

`few_shot.py` says what is trained. Seed 0 has every rate; the default and each variant's best have three seeds.
Runs are kept in few_shot.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import few_shot
import numpy as np
import pages
from few_shot import RECORDS, SEEDS, WORK, Run, share
from rivals import OURS, Method

from superlora_cli.adapter.config import RATE

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
PAGE = pages.DOCS / "rates.md"
SCALED = {"scaling": "weights"}
VARIANTS = [
    Method(OURS, "LoRA", {"method": "lora", "rank": 4, **SCALED}),
    Method(OURS, "LoKr", {"method": "lokr", "rank": 2, **SCALED}),
    Method(OURS, "2D", {"rank": 4, **SCALED}),
    Method(OURS, "2D, projected", {"rank": 4, "projection": "linear_v2", "ratio": 0.1, **SCALED}),
    Method(OURS, "LoRTA 3D", {"method": "lorta", "rank": 4, **SCALED}),
    Method(OURS, "LoRTA 5D", {"method": "lorta", "order": 5, "rank": 3, **SCALED}),
    Method(OURS, "CP 4D", {"order": 4, "rank": 5, "core": "identity", **SCALED}),
    Method(OURS, "one-hot", {"rank": 8, "inner": {"projection": "onehot", "dim": 512}, **SCALED}),
]


def best(base: str, variant: Method, known: dict[str, dict[str, Any]]) -> float | None:
    """The rate of the best validation accuracy at seed 0, once all are known; of equals the nearest to the default."""
    rows = {rate: known.get(Run(base, variant, rate, 0).key) for rate in RATES}
    if not all(rows.values()):
        return None
    return max(RATES, key=lambda rate: (share(rows[rate]["validation"]), -abs(np.log(rate / RATE))))  # type: ignore[index]


def loss(base: str, variant: Method, known: dict[str, dict[str, Any]]) -> tuple[float, float, int] | None:
    """(Validation accuracy lost by the default rate against the best one, its standard error, seeds), paired."""
    rate = best(base, variant, known)
    if rate is None:
        return None
    seeds = [s for s in SEEDS if all(Run(base, variant, r, s).key in known for r in (rate, RATE))]
    own = np.array(
        [
            [[int(hit) for hit in known[Run(base, variant, r, seed).key]["validation"]] for seed in seeds]
            for r in (rate, RATE)
        ],
        dtype=float,
    )
    lost = own[0] - own[1]
    variance = lost.mean(0).var(ddof=1) / lost.shape[1] + (
        lost.mean(1).var(ddof=1) / len(seeds) if len(seeds) > 1 else 0
    )
    return float(lost.mean()), float(variance**0.5), len(seeds)


def places() -> pages.Places:
    """The tables of docs/rates.md, from what is on record."""
    known = RECORDS.known()
    rates = " | ".join(f"{rate:g}" for rate in RATES)
    lines = [f"| base | variant | parameters | {rates} | lost at the default |"]
    lines.append("|---|---|---:|" + "---:|" * len(RATES) + "---|")
    found = []
    for base in WORK:
        for variant in VARIANTS:
            rows = [known.get(Run(base, variant, rate, 0).key) for rate in RATES]
            if not any(rows):
                continue
            cells = [f"{share(row['validation']):.3f}" if row else "" for row in rows]
            lost = loss(base, variant, known)
            said = f"{lost[0]:+.3f} ± {lost[1]:.3f} ({lost[2]} seeds)" if lost else ""
            found += [(base, *lost)] if lost else []
            count = next(row["parameters"] for row in rows if row)
            lines.append(f"| {base} | {variant.name} | {count:,} | {' | '.join(cells)} | {said} |")
    for base in WORK:
        if own := [lost for of, lost, _, _ in found if of == base]:
            lines.append(
                f"\n{base}: lost at the default rate {statistics.mean(own):.3f} on average, {max(own):.3f} at worst."
            )
    if found:
        every = [lost for _, lost, _, _ in found]
        lines.append(f"\nAll: {statistics.mean(every):.3f} on average, {max(every):.3f} at worst.")
    return {(PAGE, "transfer"): "\n".join(lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK), help="bases")
    parser.add_argument("--fill", action="store_true", help="fill the page, and train nothing")
    few_shot.options(parser)
    chosen = parser.parse_args()
    for base in [] if chosen.fill else chosen.only:
        where = few_shot.where(chosen)
        RECORDS.make([Run(base, variant, rate, 0) for rate in sorted(RATES, key=lambda r: abs(np.log(r / RATE)))
                      for variant in VARIANTS], where, chosen.workers)  # fmt: skip
        known = RECORDS.known()
        rates = [(variant, {RATE, best(base, variant, known) or RATE}) for variant in VARIANTS]
        more = [Run(base, variant, rate, seed) for seed in SEEDS[1:] for variant, own in rates for rate in sorted(own)]
        RECORDS.make(more, where, chosen.workers)
    if PAGE.exists():
        pages.fill(places())
    print(*places().values(), sep="\n")


if __name__ == "__main__":
    main()
