"""Commands killed at random moments: what is there is whole, and what they end with is what nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.faults.material import BASE, TRAIN_ON_TEXTS, TRAIN_TEXT, Material
from tests.faults.trials import Trial, complaint
from tests.faults.whole import half_written, left_over
from tests.forking.commands import FORKED, Done, Running

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SLOW = ("tests.faults.slow:disk", *FORKED)
STEPS = ("train.steps=12", "eval.every=4", "train.checkpoint_every=3", "train.threads=1", "train.batch_size=16")
TRAIN = ("train", "quickstart", *STEPS, "--out", "run", "--resume", "auto", "--quiet")
SWEEP = """\
recipe: quickstart
set: {train.steps: 4, eval.every: 2, train.checkpoint_every: 2, train.threads: 1, train.batch_size: 16}
grid: {adapter.rank: [1, 2]}
"""


@dataclass(frozen=True)
class Victim:
    """A command to be killed.

    Attributes:
        words: of the command; as `Material.fill` takes them.
        results: files that must be as if nobody had disturbed it, as patterns.
        group: whether SIGTERM and SIGINT go to its whole group of processes.
        kills: how often it is killed before it is let finish.
    """

    words: tuple[str, ...]
    results: tuple[str, ...]
    group: bool = False
    kills: int = 3


VICTIMS = {
    "train": Victim(TRAIN, ("run/adapter.safetensors", "run/eval.json")),
    "merge": Victim(("merge", "ADAPTER", "--out", "m.safetensors", "--force"), ("m.safetensors",), kills=1),
    "generate": Victim(
        ("generate", "glyphs_unet", "--num", "5", "--steps", "2", "--batch-size", "2", "--out", "images", "--force"),
        ("images/**/*",),
    ),
    "export": Victim(("export", "ADAPTER", "--to", "peft-lora", "--out", "peft", "--force"), ("peft/*",), kills=1),
    "compress": Victim(
        ("compress", "ADAPTER", "--bits", "3", "--out", "c.safetensors", "--tune", "2", "--force"),
        ("c.safetensors",),
        kills=1,
    ),
    "sweep": Victim(
        ("sweep", "sweep.yaml", "--out", "sweep", "--workers", "1", "--quiet"),
        ("sweep/results.csv", "sweep/runs/*/*.safetensors", "sweep/runs/*/eval.json"),
        group=True,
    ),
    "train, 2 loader workers": Victim(
        (*TRAIN, "data.workers=2"), ("run/adapter.safetensors", "run/eval.json"), group=True
    ),
    "merge into a file": Victim(
        ("merge", "ADAPTER", "--base", str(BASE), "--out", "m.safetensors", "--no-verify", "--force"),
        ("m.safetensors",),
        kills=1,
    ),
    "tune": Victim(
        (
            "tune",
            "quickstart",
            *STEPS[1:],
            "train.steps=8",
            "--budget",
            "64",
            "--trials",
            "4",
            "--seeds",
            "2",
            "--out",
            "tune",
            "--workers",
            "1",
            "--quiet",
        ),
        ("tune/results.csv", "tune/tune.json", "tune/best.yaml", "tune/runs/*/*.safetensors", "tune/runs/*/eval.json"),
        group=True,
    ),
    "train, accumulate 2": Victim((*TRAIN, "train.accumulate=2"), ("run/adapter.safetensors", "run/eval.json")),
    "train without adapter": Victim(
        (*TRAIN, "adapter=null", "train.optimizer.lr=0.001"), ("run/model.safetensors", "run/eval.json")
    ),
}

ON_A_PIPELINE = {
    "train on a pipeline": Victim(
        (*TRAIN_TEXT, "--resume", "auto"),
        ("run/adapter.safetensors", "run/eval.json"),
        kills=4,  # its first seconds fill the cache
    ),
    "generate from prompts": Victim(
        ("generate", "glyphs_text", "--prompt", "a red seven", "--num", "3", "--batch-size", "1", "--steps", "2",
         "--out", "images", "--force"),
        ("images/**/*",),
    ),
}  # fmt: skip


ON_TEXTS = {
    "train on texts": Victim((*TRAIN_ON_TEXTS, "--resume", "auto"), ("run/adapter.safetensors", "run/eval.json")),
    "continue prompts": Victim(
        ("generate", "sums_llama", "--prompt", "1+1=", "--prompt", "20+4=", "--out", "found.json", "--force"),
        ("found.json",),
    ),
}


def kills(
    material: Material, draw: random.Random, rounds: int, victims: Mapping[str, Victim] = VICTIMS
) -> Iterator[Trial]:
    """Every kind of command in turn, by every signal in turn."""
    alone: dict[str, tuple[dict[str, bytes], float]] = {}
    done = turn = 0
    while done < rounds:
        name = list(victims)[turn % len(victims)]
        if name not in alone:
            alone[name] = _undisturbed(material, victims[name])
        for trial in _life(material, name, victims[name], *alone[name], draw, turn):
            yield trial
            done += 1
        turn += 1


def _life(
    material: Material,
    name: str,
    victim: Victim,
    right: dict[str, bytes],
    seconds: float,
    draw: random.Random,
    turn: int,
) -> Iterator[Trial]:
    """One victim, killed several times and started again."""
    pending = []
    with material.folder() as place:
        prepare(material, place)
        for count in range(victim.kills):
            number = SIGNALS[(turn + count) % len(SIGNALS)]
            before = left_over(place)
            for _ in range(10):  # it may be quicker
                running = start(material, victim, place, SLOW)
                time.sleep(draw.uniform(0, seconds))
                running.kill(number, group=victim.group and number != signal.SIGKILL)
                done = running.done
                if done.code:
                    break
            _rest(running)
            fault = _wrong_end(done, number) or half_written(place)
            if fault is None and number != signal.SIGKILL and set(left_over(place)) - set(before):
                fault = f"interrupted, and leaves {', '.join(left_over(place))}"
            pending.append(Trial("kills", f"{name}, {number.name}", "ends as if undisturbed", fault))
        last = start(material, victim, place, SLOW).done
        fault = f"run again, it fails: {last.err[-300:]}" if last.code else None
        if fault is None and results(place, victim) != right:
            found = results(place, victim)
            fault = f"ends differently: {sorted(p for p in {*right, *found} if right.get(p) != found.get(p))}"
    for trial in pending:
        yield trial if trial.fault or not fault else Trial(trial.area, trial.kind, "ends differently", fault)


def _undisturbed(material: Material, victim: Victim) -> tuple[dict[str, bytes], float]:
    with material.folder() as place:
        prepare(material, place)
        began = time.monotonic()
        done = start(material, victim, place, SLOW).done
        seconds = time.monotonic() - began
        if done.code:
            raise AssertionError(done.err)
        return results(place, victim), seconds


def prepare(material: Material, place: Path) -> None:
    """The files that victims read."""
    (place / "sweep.yaml").write_text(SWEEP)
    material.pictures(place)
    material.texts(place)


def start(material: Material, victim: Victim, place: Path, setup: tuple[str, ...] = ()) -> Running:
    """A victim in a folder, which holds its cache, too."""
    env = {"XDG_CACHE_HOME": str(place / "cache")}
    return material.commands.start(*material.fill(victim.words), cwd=place, setup=setup, env=env)


def _rest(running: Running) -> None:
    """Wait for the processes of a command that was killed: they hold its lock until they see that it is gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def _wrong_end(done: Done, number: signal.Signals) -> str | None:
    if done.code in (0, -number):  # too quick for the signal; or it came before the command was one
        return None if done.code == 0 or number == signal.SIGKILL or not done.err else f"dies: {done.err[-300:]}"
    return complaint(done) if done.code == 130 else f"exit code {done.code}: {done.err[-300:]}"


def results(place: Path, victim: Victim) -> dict[str, bytes]:
    """What the command has made, by file."""
    found = (path for pattern in victim.results for path in sorted(place.glob(pattern)) if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in found}
