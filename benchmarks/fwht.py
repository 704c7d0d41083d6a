"""The Walsh–Hadamard transform against a butterfly and a copy, by length and by block: `python benchmarks/fwht.py`.

Per length 2^N, in one interleaved series of rounds:

- butterfly: the textbook transform (`adapter.naive`), N passes of sums and differences;
- ours: `adapter.hadamard.transform`, a matrix product for every axis of the reshaped vector;
- H16, H32, H64: ours with blocks no larger than these (`hadamard.LARGEST` 4, 5, 6), which is how that was chosen;
- clone: a copy of the vector, one pass over memory;
- fastfood: the whole projection F(x) = x H' diag(G) Π H diag(B) with ρ = 1, forward.

The goal is at least 2.5 times quicker than the butterfly at 2^24. It is reported, not enforced.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from timing import Criterion, Run, Spread, Times, device_called, interleaved, ratio, setting
from torch import Tensor

from superlora_cli.adapter import hadamard, naive, projections

GOAL_BITS = 24
LARGEST = hadamard.LARGEST
COLUMNS = "length", "run", "blocks", "ms", "quartiles", "butterfly ÷", "× clone"


def transform(x: Tensor, *, largest: int) -> Tensor:
    """Ours with blocks of at most 2^largest."""
    hadamard.LARGEST = largest
    try:
        return hadamard.transform(x)
    finally:
        hadamard.LARGEST = LARGEST


def runs_at(bits: int, blocks: list[int], device: torch.device) -> dict[str, Run]:
    """The functions timed at length 2^bits, in float32."""
    x = torch.randn(1, 2**bits, generator=torch.Generator().manual_seed(0)).to(device)
    size = projections.Size(2**bits, 2**bits)
    project = projections.build("linear", size, 0, device=device, dtype=torch.float32)
    runs: dict[str, Run] = {"butterfly": partial(naive.butterfly, x), "ours": partial(hadamard.transform, x)}
    runs |= {f"H{2**largest}": partial(transform, x, largest=largest) for largest in blocks}
    return runs | {"clone": x.clone, "fastfood": partial(project, x)}


def sizes(bits: int, name: str) -> str:
    """The blocks that a run uses, `6+6+5+5`; empty if it has none."""
    if name not in ("ours", "fastfood") and not name.startswith("H"):
        return ""
    hadamard.LARGEST = int(name[1:]).bit_length() - 1 if name.startswith("H") else LARGEST
    found = "+".join(map(str, hadamard.block_sizes(bits)))
    hadamard.LARGEST = LARGEST
    return found


def measure(bits: int, rounds: int, blocks: list[int], device: torch.device) -> Times:
    """Seconds at length 2^bits; short vectors are transformed several times in one measurement."""
    with torch.no_grad():
        return interleaved(runs_at(bits, blocks, device), rounds, device, calls=max(1, 2**20 >> bits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", default="16,18,20,22,24", help="log2 of the lengths (default %(default)s)")
    parser.add_argument("--blocks", default="4,5,6", help="log2 of the largest blocks (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device, blocks = device_called(asked.device), [int(size) for size in asked.blocks.split(",")]
    lengths = [int(bits) for bits in asked.bits.split(",")]
    table = Table(*COLUMNS, title=f"Walsh–Hadamard transforms, float32: {setting(device)}, {asked.repeats} rounds")
    found: dict[str, dict[str, dict[str, float]]] = {}
    goal: Spread | None = None
    for bits in lengths:
        times = measure(bits, asked.repeats, blocks, device)
        rows = found[str(bits)] = {}
        goal = ratio(times, "ours", "butterfly") if bits == GOAL_BITS else goal
        for name in times:
            took, quicker = Spread.of(times[name]), ratio(times, "butterfly", name).median
            copies = ratio(times, name, "clone").median
            rows[name] = {"ms": 1e3 * took.median, "butterfly_over_it": quicker, "of_clone": copies}
            quartiles = f"{1e3 * took.low:.3f}–{1e3 * took.high:.3f}"
            figures = f"{1e3 * took.median:.3f}", quartiles, f"{quicker:.2f}", f"{copies:.2f}"
            table.add_row(f"2^{bits}", name, sizes(bits, name), *figures, end_section=name == "fastfood")
    criterion = Criterion(f"2.5 times quicker at 2^{GOAL_BITS}: ours ≤ 0.400 × butterfly", 0.4, goal)
    if asked.json:
        about = {"setting": setting(device), "rounds": asked.repeats, "bits": found}
        print(json.dumps(about | {"criteria": [criterion.figures()]}, indent=2, ensure_ascii=False))
        return
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    print(criterion)


if __name__ == "__main__":
    main()
