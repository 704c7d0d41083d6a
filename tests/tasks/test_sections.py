"""The section of a recipe that is a task's own, of tasks from outside too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import Field

from superlora_cli.recipe.schema import Recipe, Section
from superlora_cli.tasks import TASKS
from superlora_cli.tasks.classification import ClassificationKind
from tests.conftest import Cli


class FocalSection(Section):
    """How much less is cared for images that are right already."""

    gamma: float = Field(2.0, ge=0, description="Exponent γ.")


class Focal(ClassificationKind):
    """Classification with a section of its own."""

    bases = "classification"

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
    from superlora_cli.recipe.load import load_recipe, recipe_from_dict

    loaded = load_recipe("quickstart", ["task=focal", "focal.gamma=1.5"])
    assert isinstance(loaded, Recipe)
    assert loaded.to_dict()["focal"] == {"gamma": 1.5}
    assert recipe_from_dict(loaded.to_dict(), "a run") == loaded
    assert cli("train", "quickstart", "task=focal", "focal.gamma=1.5", "--dry-run", "--json").code == 0
    assert "focal.gamma" in cli("schema", "--markdown").out
    for words in (("task=focal", "focal.gama=1"), ("task=focal", "focal.gamma=-1"), ("focal.gamma=1",)):
        assert cli("validate", "quickstart", *words).code == 2, words
    assert "does not apply to the task classification" in cli("validate", "quickstart", "focal.gamma=1").message
