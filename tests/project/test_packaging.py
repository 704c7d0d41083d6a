"""What is built and installed works away from the checkout: recipes, base weights and the command are in the wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from superlora_cli import __version__
from superlora_cli.recipe.load import shipped_recipes
from tests.conftest import environment

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without network."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as pip does with a pure one; put first on the path, it hides the checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, cwd: Path, *words: str) -> str:
    env = environment() | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def superlora(installed: Path, cwd: Path, *commands: list[str]) -> list[dict[str, Any]]:
    """What several commands in one process say."""
    script = """
import json, sys
from superlora_cli.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["superlora", *words, "--json"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
"""
    said = python(installed, cwd, "-c", script, json.dumps(commands))
    return [json.loads(line) for line in said.splitlines()]


def test_the_wheel_holds_the_package_the_recipes_and_the_base_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "superlora_cli"
    data = [path for path in package.rglob("*") if path.suffix in (".py", ".safetensors", ".jsonl", ".jinja")]
    assert {f"superlora_cli/{path.relative_to(package).as_posix()}" for path in data} <= names
    assert {f"superlora_cli/recipe/shipped/{name}.yaml" for name in shipped_recipes()} <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/")) or "__pycache__" in name]
    assert wheel.stat().st_size <= 25_000_000


def test_the_installed_package_is_the_one_that_runs_and_has_its_command(installed: Path, tmp_path: Path) -> None:
    ask = (
        "import superlora_cli, importlib.metadata as m;"
        "d = m.distribution('superlora-cli');"
        "values = [entry.value for entry in d.entry_points if entry.name == 'superlora'];"
        "print(superlora_cli.__file__, d.locate_file(''), d.version, values)"
    )
    told = python(installed, tmp_path, "-c", ask)
    assert told == f"{installed}/superlora_cli/__init__.py {installed} {__version__} ['superlora_cli.cli.app:main']\n"


def test_the_installed_command_lists_and_trains_the_quickstart_anywhere(installed: Path, tmp_path: Path) -> None:
    listed, run, evaluated = superlora(
        installed,
        tmp_path,
        ["ls", "recipes"],
        ["train", "quickstart", "train.steps=2"],
        ["eval", "runs/quickstart"],
    )
    assert [row["name"] for row in listed["recipes"]] == list(shipped_recipes())
    assert all(str(installed) in row["path"] for row in listed["recipes"])
    assert run["status"] == "completed"
    assert (tmp_path / run["adapter"]).is_file()
    assert evaluated["n"] == 500
