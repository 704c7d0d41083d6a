"""`superlora ls`: lists recipes, sweeps, models, methods and projections."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli.console import print_json, print_table, stderr_console


class Kind(StrEnum):
    """What can be listed."""

    recipes = "recipes"
    sweeps = "sweeps"
    models = "models"
    methods = "methods"
    projections = "projections"


def command(
    kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.recipes,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """List recipes, sweeps, models, methods or projections.

    Recipes and sweeps are those shipped with superlora, models those whose shapes are known.
    """
    listed = {
        Kind.recipes: _recipes,
        Kind.sweeps: _sweeps,
        Kind.models: _models,
        Kind.methods: _methods,
        Kind.projections: _projections,
    }
    rows = listed[kind]()
    if as_json:
        print_json({kind.value: rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(*rows[0].keys()) if rows else Table()
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    print_table(table)


def _recipes() -> list[dict[str, Any]]:
    from superlora_cli.recipe.load import shipped_recipes

    return [{"name": name, "what": _first_line(path), "path": str(path)} for name, path in shipped_recipes().items()]


def _sweeps() -> list[dict[str, Any]]:
    from superlora_cli.recipe.load import shipped_sweeps
    from superlora_cli.sweeping.plan import load_plan

    with stderr_console().status("counting runs"):
        return [
            {"name": name, "runs": len(load_plan(path).possible), "what": _first_line(path), "path": str(path)}
            for name, path in shipped_sweeps().items()
        ]


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


def _models() -> list[dict[str, Any]]:
    from superlora_cli.models.catalogue import find, names

    return [{"name": name, "parameters": find(name).params} for name in names()]


def _methods() -> list[dict[str, Any]]:
    from superlora_cli.adapter.config import PRESETS

    return [
        {
            "method": name,
            "formula": preset.formula,
            "knobs": " ".join(f"{knob}={_plain(value)}" for knob, value in preset.knobs.items()),
            "source": preset.source,
        }
        for name, preset in PRESETS.items()
    ]


def _projections() -> list[dict[str, Any]]:
    from superlora_cli.adapter.projections import PROJECTIONS

    return [
        {"projection": name, "what": (entry.__doc__ or "").partition("\n")[0], "ratio": not entry.FULL_SIZE}
        for name, entry in PROJECTIONS.items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {own}" for key, own in value.items()) + "}"
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
