"""Recipes are found by path or by shipped name, from a checkout and from a wheel, without heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from superlora_cli.errors import UsageError
from superlora_cli.recipe import load
from superlora_cli.recipe.load import find_recipe, load_recipe, shipped_recipes, shipped_sweeps

MINIMAL = "model: {name: m}\ndata: {name: digits}\ntrain: {steps: 1, optimizer: {lr: 0.1}}\n"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with two recipes; the current folder is another one."""
    folder = tmp_path / "superlora_cli/recipe/shipped"
    (folder / "paper").mkdir(parents=True)
    (folder / "quickstart.yaml").write_text(MINIMAL)
    (folder / "paper/fig4.yaml").write_text(MINIMAL)
    monkeypatch.setattr(load, "__file__", str(folder.parent / "load.py"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return folder


def test_shipped_recipes_are_found_by_name(shipped: Path) -> None:
    assert list(shipped_recipes()) == ["paper/fig4", "quickstart"]
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == shipped / "quickstart.yaml"
    assert find_recipe("paper/fig4") == shipped / "paper/fig4.yaml"
    assert load_recipe("quickstart").train.steps == 1
    Path("quickstart").mkdir()  # a run's folder of that name is in nobody's way
    assert find_recipe("quickstart") == shipped / "quickstart.yaml"
    Path("quickstart.yaml").write_text(MINIMAL)
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize("name", ["quickstrat", "recipes/quickstart.yaml", "fig4"])
def test_a_missing_recipe_names_the_nearest_and_the_list(shipped: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no such file or shipped recipe") as caught:
        find_recipe(name)
    assert caught.value.where == name
    assert "did you mean '" in str(caught.value.hint)
    assert "superlora ls recipes" in str(caught.value.hint)


def test_key_value_in_the_place_of_a_recipe_is_not_looked_for() -> None:
    with pytest.raises(UsageError, match="no recipe is given"):
        find_recipe("train.steps=5")


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 5000, "/nowhere/else.yaml"])
def test_odd_names_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(name)


def test_an_editable_checkout_ships_its_recipes_folder() -> None:
    top = Path(load.__file__).parents[2] / "recipes"
    files = {path for path in top.rglob("*") if path.suffix in (".yaml", ".yml")}
    assert set(shipped_recipes().values()) == {path for path in files if path.parent.name != "sweeps"}
    assert set(shipped_sweeps().values()) == {path for path in files if path.parent.name == "sweeps"}


def test_finding_recipes_imports_neither_pydantic_nor_yaml_and_loading_no_torch() -> None:
    script = (
        "import sys, superlora_cli.recipe.load as load; load.shipped_recipes();"
        "assert not {'pydantic', 'yaml'} & set(sys.modules);"
        "import superlora_cli.recipe.problems, superlora_cli.recipe.yaml;"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
