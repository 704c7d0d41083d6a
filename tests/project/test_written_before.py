"""Files of adapters written before the rooms were moved: the same bytes are written now, and read to the same ΔW, and
commands say the same of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.models.embedded import ASSETS
from tests.project.written_before import writing

BEFORE = writing.HERE
NAMES = [*writing.FROM_PYTHON, *writing.FROM_A_RECIPE]
ADDED = {"metrics.top5", "numbers", "bytes", "preprocess"}  # keys that have been added to answers since


def same(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """What differs: numbers by more than their rounding elsewhere, keys but those added, all else at all."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        if where == "error":  # whose words may change
            found, wanted = ({**dict.fromkeys(one), "code": one["code"]} for one in (found, wanted))
        inside = {key: f"{where}.{key}".lstrip(".") for key in (*wanted, *found)}
        for key, place in inside.items():
            if key in wanted and key in found:
                yield from same(found[key], wanted[key], place)
            elif not (key in found and place in ADDED):
                yield f"{place}: {'new' if key in found else 'gone'}"
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for one, other in zip(found, wanted, strict=True):
            yield from same(one, other, where)
    elif isinstance(wanted, float) and isinstance(found, float):
        # an image in fifty of a class may fall elsewhere by a rounding; what is computed twice differs by little
        if found != pytest.approx(wanted, abs=0.021 if where.endswith("accuracy") else 1e-4, rel=1e-4):
            yield f"{where}: {found}, was {wanted}"
    elif found != wanted and not where.endswith("taken_for"):
        yield f"{where}: {found!r}, was {wanted!r}"


def test_the_same_bytes_are_written(tmp_path: Path) -> None:
    files = list(writing.written(tmp_path))
    assert [file.stem for file in files] == NAMES
    assert [file.name for file in files if file.read_bytes() != (BEFORE / file.name).read_bytes()] == []


@pytest.mark.parametrize("name", NAMES)
def test_they_are_read_to_the_same_update(name: str) -> None:
    wanted = json.loads((BEFORE / "deltas.json").read_text())[name]
    found = writing.seen(writing.deltas_of(BEFORE / f"{name}.safetensors"))
    assert found.keys() == wanted.keys()
    for target, numbers in wanted.items():
        assert found[target] == pytest.approx(numbers, rel=1e-4, abs=1e-5 * numbers[0]), target


def test_commands_say_the_same(tmp_path: Path) -> None:
    for name in NAMES:
        shutil.copy(BEFORE / f"{name}.safetensors", tmp_path)
    before = json.loads((BEFORE / "answers.json").read_text().replace("ASSETS", str(ASSETS)))
    wrong = []
    for was, (command, told) in zip(before, writing.answers(tmp_path), strict=True):
        assert (was["command"], was["code"]) == (command, told.code), told.err
        wrong += [f"{command}: {line}" for line in same(told.json(), was["said"])]
    assert not wrong
