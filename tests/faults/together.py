"""Two commands at one place, and files that are replaced while they are read."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

from tests.faults.kills import SLOW, TRAIN
from tests.faults.material import Material
from tests.faults.trials import Trial, complaint, contents, outcome
from tests.faults.whole import half_written
from tests.forking.commands import Done

PLACE = "adapter.safetensors"


def together(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """Each kind in turn."""
    kinds: tuple[Callable[[Material, random.Random], Trial], ...] = (_trainings, _replaced, _merges, _forced, _exports)
    for _, kind in zip(range(rounds), cycle(kinds), strict=False):
        yield kind(material, draw)


def _trainings(material: Material, draw: random.Random) -> Trial:
    """One trains, the other is refused, and the result is that of one that was alone."""
    words = TRAIN[:-3]
    with material.folder() as place:
        material.commands.right(*words, cwd=place)
        right = (place / "run/adapter.safetensors").read_bytes()
        shutil.rmtree(place / "run")
        ended = _both(material, place, [words, words])
        fault = _one_of(ended) or half_written(place)
        if fault is None and (place / "run/adapter.safetensors").read_bytes() != right:
            fault = "ends differently"
    return Trial("together", "two trainings in one folder", "one trains, the other is refused", fault)


def _replaced(material: Material, draw: random.Random) -> Trial:
    """What is read is the one or the other, never a mixture."""
    words = draw.choice((("inspect", PLACE), ("export", PLACE, "--to", "delta", "--out", "delta.safetensors")))
    both = (material.adapter, material.other)
    with material.folder() as place:
        rights = []
        for file in both:
            shutil.copy(file, place / PLACE)
            rights.append((material.commands.right(*words, cwd=place).out, contents(place).get("delta.safetensors")))
            (place / "delta.safetensors").unlink(missing_ok=True)
        running = material.commands.start(*words, cwd=place)
        for file in cycle(both):
            shutil.copy(file, place / "next")
            os.replace(place / "next", place / PLACE)
            if running.over:
                break
        done = running.done
        fault = complaint(done)
        if fault is None and (done.out, contents(place).get("delta.safetensors")) not in rights:
            fault = "neither the one nor the other"
    return Trial("together", "an adapter replaced while it is read", "the one or the other", fault)


def _merges(material: Material, draw: random.Random) -> Trial:
    """One is written, the other refused: nothing is overwritten without --force."""
    return _written(material, "two merges to one file", ("merge", "--no-verify", "--out", "m.safetensors"), _one_of)


def _exports(material: Material, draw: random.Random) -> Trial:
    """The same for a folder."""
    return _written(material, "two exports to one folder", ("export", "--to", "peft-lora", "--out", "peft"), _one_of)


def _forced(material: Material, draw: random.Random) -> Trial:
    """With --force one of the two is there in the end, whole."""
    words = ("merge", "--no-verify", "--out", "m.safetensors", "--force")
    return _written(material, "two merges to one file, --force", words, _all)


def _written(material: Material, kind: str, words: tuple[str, ...], right: Callable[[list[Done]], str | None]) -> Trial:
    name, *options = words
    commands = [(name, str(file), *options) for file in (material.adapter, material.other)]
    wanted = []
    for command in commands:
        with material.folder() as place:
            material.commands.right(*command, cwd=place)
            wanted.append(contents(place))
    with material.folder() as place:
        ended = _both(material, place, commands)
        fault = right(ended) or half_written(place)
        if fault is None and contents(place) not in wanted:
            fault = f"neither the one nor the other: {list(contents(place))}"
    return Trial("together", kind, " and ".join(sorted(map(outcome, ended))), fault)


def _both(material: Material, place: Path, commands: list[tuple[str, ...]]) -> list[Done]:
    running = [material.commands.start(*words, cwd=place, setup=SLOW) for words in commands]
    return [one.done for one in running]


def _one_of(ended: list[Done]) -> str | None:
    codes = sorted(done.code for done in ended)
    return next(filter(None, map(complaint, ended)), None) or (None if codes == [0, 2] else f"exit codes {codes}")


def _all(ended: list[Done]) -> str | None:
    return next((done.err for done in ended if done.code), None)
