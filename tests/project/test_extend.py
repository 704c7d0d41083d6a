"""docs/extend.md: a core, a projection, a task, a kind of data and a format from outside, one object each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from superlora_cli.adapter import naive
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.projections import PROJECTIONS
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.commands.generators import GENERATORS, Generator
from superlora_cli.data.known import SOURCES
from superlora_cli.formats.known import FORMATS
from superlora_cli.table import Table
from superlora_cli.tasks import TASKS
from tests.conftest import Cli
from tests.data.conftest import QUICK
from tests.recipe.test_defaults import SECOND

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
ADDED: dict[str, Table[Any]] = {
    "one_number": CORES, "mirror": PROJECTIONS, "focal": TASKS, "colours": SOURCES, "norms": FORMATS
}  # fmt: skip


@pytest.fixture
def extended() -> Iterator[None]:
    """With the objects of the page in their tables."""
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, {"__name__": "extension"})
    yield
    for name, table in ADDED.items():
        table.remove(name)


@pytest.mark.usefixtures("extended")
@pytest.mark.parametrize("knobs", [{"order": 3, "rank": 2}, {"method": "lora", "rank": 2}, {"order": 2, "rank": 3}])
def test_a_registered_core_follows_its_definition(knobs: dict[str, Any]) -> None:
    config = AdapterConfig.from_knobs(knobs.get("method"), core="one_number",
                                      **{key: value for key, value in knobs.items() if key != "method"})  # fmt: skip
    shapes = plan(config, [TargetShape(f"w{i}", 6, 4) for i in range(2)])
    drawn = torch.Generator().manual_seed(0)
    trained = {name: torch.randn(shape, generator=drawn).double() for name, shape in shapes.tensors.items()}
    for made, wanted in zip(deltas(shapes, trained, Frozen(shapes, dtype=torch.float64)),
                            naive.deltas(shapes, trained), strict=True):  # fmt: skip
        torch.testing.assert_close(made, wanted)
        assert made.abs().max() > 0.01


@pytest.mark.usefixtures("extended")
def test_all_five_are_used_from_a_recipe_and_a_command(cli: Cli) -> None:
    words = ("task=focal", "data.name=colours", "model.head=new", "adapter.method=lorta", "adapter.order=3",
             "adapter.core=one_number", "adapter.projection=mirror")  # fmt: skip
    result = cli("train", "quickstart", *QUICK, *words, "--out", "run", "--json")
    assert result.code == 0, result.err
    evaluated = cli("eval", "run", "--json").json()
    assert evaluated["task"] == "focal"
    assert [row["class"] for row in evaluated["per_class"]] == ["red", "green", "blue"]
    assert cli("export", "run", "--to", "norms", "--out", "norms.txt").code == 0
    assert all(float(line.split()[-1]) > 0 for line in Path("norms.txt").read_text().splitlines())
    counted = cli("count-params", "--core", "one_number", "--order", "3", "--projection", "mirror", "--json").json()
    assert counted["core"] == 1


class Telling(Generator):
    """Tells what it is asked."""

    options = ("num",)
    to_folder = False

    def generate(self, source: str, out: Path | None, console: Any, overrides: Any, **given: Any) -> dict[str, Any]:
        given["tell"](f"{given['num']} of {Path(source).name}")
        return {}


def test_a_task_generates_in_a_way_from_outside(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SECOND / "run"
    monkeypatch.setattr(TASKS["classification"], "generates", "telling", raising=False)
    assert "unknown way to generate" in cli("generate", run, "--num", "3").message
    GENERATORS.add("telling", Telling())
    try:
        assert cli("generate", run, "--num", "3").out.startswith("3 of run")
        assert "--classes: does not apply" in cli("generate", run, "--classes", "0").message
        assert "generates no images" in cli("eval", run, "--against", "digits:test", "--num", "24").message
    finally:
        GENERATORS.remove("telling")


@pytest.mark.parametrize("word", ["task=focal", "adapter.core=one_number", "adapter.projection=mirror"])
def test_without_them_the_names_are_unknown(word: str, cli: Cli) -> None:
    assert cli("validate", "quickstart", word).code == 2
