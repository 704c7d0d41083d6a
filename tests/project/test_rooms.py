"""The rooms of the package: imports point one way, and no name of a task, core, kind of data or format strays."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "superlora_cli"
ROOMS = (  # from top to bottom; those in a line do not import each other
    ("__init__", "__main__"),
    ("cli",),
    ("tuning",),
    ("sweeping",),
    ("commands",),
    ("reporting", "api", "peft_plugin"),
    ("formats",),
    ("tasks",),
    ("opening", "generation"),
    ("analysis", "training"),
    ("data", "models"),
    ("recipe",),
    ("adapter",),
    ("weights",),
    ("the table of tasks",),
    ("table", "cache", "user_cache", "progress", "kinds"),
    ("files", "launch"),
    ("errors",),
)
RANK = {room: rank for rank, row in enumerate(ROOMS) for room in row}
TABLE_OF_TASKS = ("tasks", "tasks.task")
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    """`adapter.delta`; a package by its own name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(file): file for file in FILES}


def room_of(module: str) -> str:
    """The first part of a module's name, but for the table of tasks, which is below all that is in it."""
    return "the table of tasks" if module in TABLE_OF_TASKS else module.partition(".")[0]


def imports(module: str, *, inside: bool) -> Iterator[str]:
    """The package's modules that a module imports when it runs, also `inside` of functions."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for_types = {
        id(node) for block in ast.walk(tree) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }  # fmt: skip
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            home = (node.module or "").removeprefix("superlora_cli").removeprefix(".")
            if (node.module or "").startswith("superlora_cli"):
                for name in node.names:
                    full = f"{home}.{name.name}".lstrip(".")
                    yield full if full in MODULES else home


def test_every_room_is_listed() -> None:
    assert {room_of(module) for module in MODULES} == RANK.keys()


@pytest.mark.parametrize("room", sorted(RANK))
def test_imports_point_one_way(room: str) -> None:
    wrong = []
    for module in MODULES:
        if room_of(module) == room and not (module in TABLE_OF_TASKS or module == "__init__"):
            for other in imports(module, inside=True):
                if other and room_of(other) != room and RANK[room_of(other)] <= RANK[room]:
                    wrong.append(f"{module} imports {other}")
    assert not wrong


def test_imports_have_no_cycle() -> None:
    graph = {module: {other for other in imports(module, inside=False) if other} - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


NAMES = {
    "tasks": ("classification|diffusion", ("tasks/", "recipe/schema.py", "models/base.py", "models/unets.py")),
    "cores": ("identity|diagonal|dense", ("adapter/cores.py",)),
    "formats": ("peft-lora|diffusers-lora|delta|timm", ("formats/", "commands/combine.py")),  # whose --to is its own
    "projections": ("identity|shuffle|linear|nonlinear", ("adapter/config.py", "adapter/naive.py")),  # of Eq. 2 alone
    "products": (
        "elementwise|rows|columns|rotation|magnitude",
        ("adapter/multiplied.py", "adapter/naive.py", "formats/peft_products.py"),
    ),
    "kinds of data": ("torch/|hfds/?|wds/?|digits|glyphs|torch/image_folder|torch/folder", ("data/",)),
}


@pytest.mark.parametrize("what", NAMES)
def test_a_name_is_compared_only_within_its_folder(what: str) -> None:
    words, home = NAMES[what]
    quoted = rf'["\'](?:{words})["\']'
    subject = {"cores": r"core(?:_kind)?", "tasks": "task", "formats": r"(?:to|format)", "projections": "projection",
               "products": r"(?:kind|multiply)", "kinds of data": "name"}[what]  # fmt: skip
    compared = re.compile(
        rf"\b{subject}\s*(?:==|!=|in|not in)\s*[(\[]?{quoted}|{quoted}\s*(?:==|!=)|startswith\({quoted}"
    )
    found = [
        f"{file.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for file in FILES
        if not str(file.relative_to(PACKAGE)).startswith(home)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if compared.search(line)
    ]
    assert not found


def test_a_units_tensors_are_named_in_one_place() -> None:
    """`b0_k1_A2`: no other place builds such a name, or takes one apart."""
    named = re.compile(r"_k\{|_k\\d|b\d_k|\bb\{|(?:partition|split)\(\"_")
    found = [
        f"{file.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line) and not line.lstrip().startswith((">>>", '"""', "{'b"))  # what docstrings show
    ]
    assert [line for line in found if not line.startswith("adapter/shapes.py:")] == []
    assert found
