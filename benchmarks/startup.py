"""How long the command line takes to start, against Python with typer and rich: `python benchmarks/startup.py`.

The goal is a ratio of at most 2.5. Runs are interleaved, so that a busy machine slows all of them alike, and use
compiled modules, as an installed package does, whatever the environment says: the first, uncounted run compiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

BASELINE = "import typer, rich.table"
COMMANDS = {
    BASELINE: ["-c", BASELINE],
    "superlora --help": ["-m", "superlora_cli", "--help"],
    "superlora count-params --groups 4 --order 5": [
        *("-m", "superlora_cli", "count-params", "--groups", "4", "--order", "5")
    ],
}


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Wall-clock time of one Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="processes per command (default 15)")
    parser.add_argument("--json", action="store_true", help="seconds of every process, as JSON")
    asked = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as compiled:
        environment["PYTHONPYCACHEPREFIX"] = compiled
        for _ in range(asked.runs + 1):
            for name, arguments in COMMANDS.items():
                times[name].append(seconds(arguments, environment))
    counted = {name: values[1:] for name, values in times.items()}
    if asked.json:
        print(json.dumps({"baseline": BASELINE, "seconds": counted}))
        return
    medians = {name: statistics.median(values) for name, values in counted.items()}
    for name, median in medians.items():
        print(f"{median:7.3f} s  {median / medians[BASELINE]:5.2f} ×  {name}")


if __name__ == "__main__":
    main()
