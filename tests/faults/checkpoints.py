"""Runs that were interrupted and whose newest checkpoint was altered since: resumed, they end as if it never was."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from superlora_cli.training.checkpoints import COMPLETE, STATE
from tests.faults.files import ADAPTER
from tests.faults.material import QUICK, Material
from tests.faults.spoiling import BYTES, a_run_of_zeros, cut, foreign, longer, one_bit
from tests.faults.trials import Trial, complaint

RESUME = ("train", "quickstart", *QUICK, "--out", "run", "--resume", "auto", "--quiet")
RESULTS = ("adapter.safetensors", "eval.json")
RUNNING = '"status": "running"'

Spoiler = Callable[[Path, random.Random], None]


class Malicious:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch hacked",)


def checkpoints(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Every kind in turn, on the newest checkpoint, or now and then on all."""
    for turn in range(rounds):
        kind = list(KINDS)[turn % len(KINDS)]
        with material.folder() as place:
            run = _interrupted(material, place)
            found = sorted((run / "checkpoints").iterdir())
            for checkpoint in found if draw.random() < 0.2 else found[-1:]:
                KINDS[kind](checkpoint, draw)
            done = material.commands.run(*RESUME, cwd=place)
            fault = complaint(done)
            if (place / "hacked").exists():
                fault = "the code in a pickle was run"
            elif done.code == 0 and any((run / n).read_bytes() != (material.run / n).read_bytes() for n in RESULTS):
                fault = fault or "resumed, and ends differently"
        yield Trial("checkpoints", kind, "ends as if undisturbed" if done.code == 0 else "refused", fault)


def _interrupted(material: Material, place: Path) -> Path:
    """A copy of the run as it was before its last steps."""
    run = place / "run"
    shutil.copytree(material.run, run)
    for name in RESULTS:
        (run / name).unlink()
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    about = run / "run.json"
    about.write_text(about.read_text().replace('"status": "completed"', RUNNING))
    assert RUNNING in about.read_text()
    return run


def _bytes_of(name: str, spoil: Callable[[bytes, random.Random], bytes]) -> Spoiler:
    def apply(checkpoint: Path, draw: random.Random) -> None:
        (checkpoint / name).write_bytes(spoil((checkpoint / name).read_bytes(), draw))

    return apply


def _sealed(name: str, make: Callable[[bytes, random.Random], bytes]) -> Spoiler:
    """Another content, with a sum that fits."""

    def apply(checkpoint: Path, draw: random.Random) -> None:
        old = (checkpoint / name).read_bytes()
        new = make(old, draw)
        (checkpoint / name).write_bytes(new)
        sums = [hashlib.sha256(content).hexdigest() for content in (old, new)]
        (checkpoint / COMPLETE).write_text((checkpoint / COMPLETE).read_text().replace(*sums))

    return apply


def _gone(*names: str) -> Spoiler:
    def apply(checkpoint: Path, draw: random.Random) -> None:
        for name in names:
            (checkpoint / name).unlink()

    return apply


def _pickle(content: bytes, draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    state = torch.load(io.BytesIO(content), weights_only=True)
    torch.save({**state, draw.choice(list(state)): Malicious()}, buffer)
    return buffer.getvalue()


KINDS: dict[str, Spoiler] = {
    f"{what}, {kind}": _bytes_of(name, spoil)
    for what, name in (("state", STATE), ("COMPLETE", COMPLETE))
    for kind, spoil in (
        ("one bit", one_bit),
        ("truncated", cut),
        ("bytes after its end", longer),
        ("a block of zeros", a_run_of_zeros),
        ("another format", foreign),
    )
} | {
    **{f"adapter, {kind}": _bytes_of(ADAPTER, BYTES[kind]) for kind in ("one bit of the file", "truncated")},
    "state, code in a pickle, with a sum that fits": _sealed(STATE, _pickle),
    "state, another format, with a sum that fits": _sealed(STATE, foreign),
    "state gone": _gone(STATE),
    "COMPLETE gone": _gone(COMPLETE),
    "the folder is empty": _gone(STATE, COMPLETE, ADAPTER),
}
