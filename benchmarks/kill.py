"""Runs that are killed again and again and end with the bytes of one that nobody touched.

    python benchmarks/kill.py                      # 20 kills of each kind, a quarter of an hour
    python benchmarks/kill.py --only sigterm --kills 5

Each is the quickstart with a checkpoint every 20 steps. It is started, killed at a random moment (three times in ten
while it starts, else while it trains or writes) and started again with `--resume auto`, until it has been killed often
enough; then it is let finish. SIGTERM goes to the whole group of processes, loader workers included, SIGKILL to the
training process alone. Exit code 1 if any run ends with another adapter.safetensors or eval.json than the one left
alone, or with more files.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

COMMON = ("quickstart", "train.threads=1", "train.checkpoint_every=20")
KINDS: dict[str, tuple[signal.Signals, tuple[str, ...]]] = {
    "sigkill": (signal.SIGKILL, ()),
    "sigterm": (signal.SIGTERM, ()),
    "sigkill, accumulate 2": (signal.SIGKILL, ("train.batch_size=32", "train.accumulate=2")),
    "sigkill, 2 workers": (signal.SIGKILL, ("data.workers=2",)),
    "sigterm, 2 workers": (signal.SIGTERM, ("data.workers=2",)),
}
EXPECTED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 130}


@dataclass
class Outcome:
    """What happened to one run."""

    kills: list[str] = field(default_factory=list)  # the newest checkpoint's step at each, "–" before the first
    same: bool = False


def command(folder: Path, words: tuple[str, ...]) -> list[str]:
    """Train in `folder`, from its newest checkpoint if it has one."""
    return [sys.executable, "-m", "superlora_cli", "train", *COMMON, *words, "--out", str(folder), "--resume", "auto"]


def start(folder: Path, words: tuple[str, ...]) -> subprocess.Popen[str]:
    """The command, at the head of a group of processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, words), env=environment, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(folder: Path, words: tuple[str, ...]) -> float:
    """Let the run go to its end; the seconds it took."""
    began = time.monotonic()
    process = start(folder, words)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{errors}\nthe run failed with exit code {process.returncode}")
    return time.monotonic() - began


def result(folder: Path) -> tuple[bytes, bytes, list[str]]:
    """The adapter, the evaluation and the names of the files (a run that was stopped kept other checkpoints)."""
    names = sorted(path.name for path in folder.iterdir())
    return (folder / "adapter.safetensors").read_bytes(), (folder / "eval.json").read_bytes(), names


def newest(folder: Path) -> str:
    """Step of the newest whole checkpoint."""
    steps = sorted(path.parent.name for path in folder.glob("checkpoints/step-*/COMPLETE"))
    return str(int(steps[-1].removeprefix("step-"))) if steps else "–"


def changed(folder: Path) -> int:
    """When run.json was last written, which happens when training begins."""
    file = folder / "run.json"
    return file.stat().st_mtime_ns if file.exists() else 0


def torment(kind: str, kills: int, draw: random.Random) -> Outcome:
    """Kill a run `kills` times, let it finish, and compare it with one left alone."""
    number, words = KINDS[kind]
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        alone, killed = Path(place) / "alone" / "run", Path(place) / "killed" / "run"
        whole = finish(alone, words)
        startup = finish(alone, words)  # a finished run that is resumed: all but the training
        while len(outcome.kills) < kills:
            before = changed(killed)
            process = start(killed, words)
            if draw.random() < 0.3:
                time.sleep(draw.uniform(0, startup))
            else:
                while changed(killed) == before and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 2.5 * (whole - startup) / kills))
            if process.poll() is not None:
                continue
            if number == signal.SIGKILL:
                process.kill()
            else:
                os.killpg(process.pid, number)
            _, errors = process.communicate()
            if process.returncode == 0:
                continue  # it finished while the signal was on its way
            outcome.kills.append(newest(killed))
            early = -number  # before Python took over, a signal is the system's
            if process.returncode not in (EXPECTED[number], early) or "Traceback" in errors:
                print(f"{kind}: exit code {process.returncode}\n{errors}", flush=True)
        finish(killed, words)
        outcome.same = result(alone) == result(killed)
    return outcome


def main() -> None:
    """Torment every kind and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    asked = parser.parse_args()
    right = True
    for kind in asked.only:
        outcome = torment(kind, asked.kills, random.Random(asked.seed))
        right &= outcome.same
        verdict = "identical" if outcome.same else "DIFFERENT"
        print(f"{kind}: {len(outcome.kills)} kills, after steps {' '.join(outcome.kills)}: {verdict}", flush=True)
    sys.exit(not right)


if __name__ == "__main__":
    main()
