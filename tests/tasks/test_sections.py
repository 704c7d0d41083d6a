"""The section of a recipe that is a task's own, of tasks from outside too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field

from superlora_cli.commands.generators import GENERATORS
from superlora_cli.commands.previews import PREVIEWS
from superlora_cli.commands.resuming import differences
from superlora_cli.errors import UsageError
from superlora_cli.recipe.load import load_recipe, recipe_from_dict
from superlora_cli.recipe.schema import DataSection, Recipe, Section
from superlora_cli.recipe.yaml import dump_yaml
from superlora_cli.tasks import TASKS
from superlora_cli.tasks.classification import ClassificationKind
from superlora_cli.training.run import RunFolder
from tests.conftest import Cli


class FocalSection(Section):
    """How much less is cared for images that are right already."""

    gamma: float = Field(2.0, ge=0, description="Exponent γ.")


class Focal(ClassificationKind):
    """Classification with a section of its own."""

    bases = "classification"
    data_keys = ("caption",)
    free = ("gamma",)

    def section(self) -> type[Section]:
        return FocalSection


class Bare(ClassificationKind):
    """Classification under another name."""

    bases = "classification"


@pytest.fixture
def added(request: pytest.FixtureRequest) -> Iterator[None]:
    """With tasks from outside, by name."""
    for name, kind in request.param.items():
        TASKS.add(name, kind())
    yield
    for name in request.param:
        TASKS.remove(name)


@pytest.mark.slow
@pytest.mark.parametrize("added", [{"data": Bare, "train": Bare, "seed": Bare}], indirect=True)
@pytest.mark.usefixtures("added")
def test_a_task_named_like_a_key_is_in_nobodys_way(cli: Cli) -> None:
    assert cli("train", "quickstart", "--dry-run", "--json").code == 0
    assert cli("train", "quickstart", "task=data", "--dry-run", "--json").code == 0


@pytest.mark.parametrize("added", [{"data": Focal}], indirect=True)
@pytest.mark.usefixtures("added")
def test_but_its_section_cannot_have_the_name_of_a_key(cli: Cli) -> None:
    result = cli("validate", "quickstart", "task=data")
    assert result.code == 2
    assert "the task data" in result.message


@pytest.mark.parametrize("added", [{"focal": Focal}], indirect=True)
@pytest.mark.usefixtures("added")
def test_the_section_of_a_task_from_outside_is_read(cli: Cli) -> None:
    loaded = load_recipe("quickstart", ["task=focal", "focal.gamma=1.5"])
    assert isinstance(loaded, Recipe)
    assert loaded.to_dict()["focal"] == {"gamma": 1.5}
    assert recipe_from_dict(loaded.to_dict(), "a run") == loaded
    assert cli("train", "quickstart", "task=focal", "focal.gamma=1.5", "--dry-run", "--json").code == 0
    assert "focal.gamma" in cli("schema", "--markdown").out
    for words in (("task=focal", "focal.gama=1"), ("task=focal", "focal.gamma=-1"), ("focal.gamma=1",)):
        assert cli("validate", "quickstart", *words).code == 2, words
    assert "does not apply to the task classification" in cli("validate", "quickstart", "focal.gamma=1").message


@pytest.mark.parametrize("added", [{"focal": Focal}], indirect=True)
@pytest.mark.usefixtures("added")
def test_a_task_says_which_keys_of_data_apply_and_which_of_its_own_may_change(tmp_path: Path) -> None:
    settled = ["task=focal", "data.split=content", "focal.gamma=1.5", "data.caption=a"]
    with pytest.raises(UsageError, match="does not apply to the task focal"):
        load_recipe("quickstart", [*settled, "data.mixup=0.2"])
    (tmp_path / "recipe.yaml").write_text(dump_yaml(load_recipe("quickstart", settled).to_dict()))
    over: Any = SimpleNamespace(is_over=lambda train: True, step=0)
    processes: Any = SimpleNamespace(describe=dict)

    def resumed(word: str) -> list[str]:
        work: Any = SimpleNamespace(
            recipe=load_recipe("quickstart", [*settled, word]), splits=SimpleNamespace(fingerprint="")
        )  # fmt: skip
        return differences(RunFolder(tmp_path), work, processes, over)

    assert resumed("focal.gamma=2") == ["resuming with a changed recipe: focal.gamma: 1.5 → 2.0"]
    with pytest.raises(UsageError, match="with another recipe: eval"):
        resumed("eval.select=test")


@pytest.mark.parametrize("name", list(TASKS))
def test_what_a_task_names_is_there(name: str) -> None:
    kind = TASKS[name]
    own = kind.section()
    assert {*kind.free} <= {*(own.model_fields if own else ())}
    assert {*kind.data_keys} <= {*DataSection.model_fields}
    assert kind.generates is None or kind.generates in GENERATORS
    assert kind.previews is None or kind.previews in PREVIEWS
