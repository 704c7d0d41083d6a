"""`superlora inspect`: what is in an adapter file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli.console import loading, print_json, print_pairs, print_table


def command(
    adapter: Annotated[Path, typer.Argument(help="An adapter file or a run folder.")],
    norms: Annotated[
        bool, typer.Option("--norms", help="Show the norm of ΔW for every weight, also relative to the base weight.")
    ] = False,
    delta: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write ΔW of every adapted weight to this .safetensors file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --delta.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show what is in an adapter file.

    That is its knobs, targets, tensors, base, recipe and metrics; with --norms, also how much it changes each weight.
    """
    from superlora_cli.opening.results import resolve_result

    path = resolve_result(adapter)
    with loading("torch"):
        from superlora_cli.adapter import store
        from superlora_cli.adapter.activations import MEANING

    stored = store.load(path)
    about: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "params": {
            "adapter": sum(tensor.numel() for tensor in (*stored.factors.values(), *stored.also.values())),
            "head": sum(tensor.numel() for tensor in stored.head.values()),
        },
        "numbers": {"bits": stored.config.bits or 32, "bytes": stored.number_bytes},
        "config": json.loads(stored.config.to_json()),
        "targets": list(stored.patterns),
        "base": dict(stored.base),
        "classes": list(stored.classes),
        "metrics": dict(stored.metrics),
        "origin": dict(stored.origin),
        "tensors": {
            name: list(tensor.shape) for name, tensor in {**stored.factors, **stored.positions, **stored.beside}.items()
        },
        "recipe": dict(stored.recipe),
    }
    if delta is not None:
        from superlora_cli.commands.export import export

        about["delta"] = export(path, delta, to="delta", force=force)["output"]
    if norms:
        from superlora_cli.commands import norms as measure
        from superlora_cli.opening.shapes_only import read_adapter

        about["norms"] = measure.norms(read_adapter(path))
    if as_json:
        print_json(about)
        return
    metrics = stored.metrics.items()
    places = f", {stored.position_bytes:,} of them for their positions" if stored.positions else ""
    rows = [
        ("parameters", f"{about['params']['adapter']:,} adapter, {about['params']['head']:,} head"),
        ("numbers", f"of {about['numbers']['bits']} bits, {about['numbers']['bytes']:,} bytes" + places),
        ("base", f"{stored.base['name']}  sha256 {stored.base['sha256'][:16]}…  {stored.base['dtype']}"),
        ("targets", ", ".join(stored.patterns) or "none"),
        *([("classes", _few(stored.classes))] if stored.classes else []),
        ("knobs", ", ".join(f"{knob} {value}" for knob, value in _set_knobs(about["config"]).items())),
        *([("update", MEANING.format(stored.config.activation))] if stored.config.activates else []),
        *((name, " × ".join(map(str, shape))) for name, shape in about["tensors"].items()),
        *([("made from", _origin(stored.origin))] if stored.origin else []),
        *((name, f"{value:.4f}" if isinstance(value, float) else str(value)) for name, value in metrics),
    ]
    if delta is not None:
        rows.append(("ΔW written to", about["delta"]))
    print_pairs(f"{path}  {about['bytes']:,} bytes", rows)
    if norms:
        _show_norms(about["norms"])


def _origin(origin: Mapping[str, Any]) -> str:
    error = f"relative error {origin['error']:.2e}"
    if "extracted" in origin:
        return f"the difference between {origin['extracted']} and the base, {error}"
    if "imported" in origin:
        return f"{origin['imported']}, {error}"
    weights = ", ".join(f"{source['weight']:g}" for source in origin["combined"])
    return f"{len(origin['combined'])} adapters, weighted {weights}, {error}"


def _show_norms(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    title = f"no base to compare with: {found['why_not']}" if found["why_not"] else None
    table = Table("weight", "‖ΔW‖", "‖ΔW‖ / ‖W‖", title=title and Text(title), title_justify="left")
    for row in (*found["targets"], {"name": "all", **found}):
        relative = "" if row["relative"] is None else f"{row['relative']:.4f}"
        table.add_row(Text(row["name"]), f"{row['norm']:.4g}", relative)
    print_table(table)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, … {names[-1]} ({len(names)})"


def _set_knobs(config: dict[str, Any]) -> dict[str, Any]:
    """The knobs that differ from their defaults, and always the main ones (if there is a ΔW); no rank that is none."""
    from superlora_cli.adapter.config import AdapterConfig

    default = json.loads(AdapterConfig().to_json())
    always = ("groups", "order", "rank", "fold") if config["groups"] != "none" else ()
    shown = {knob: value for knob, value in config.items() if (knob, value) != ("rank", None)}
    return {knob: value for knob, value in shown.items() if knob in always or value != default.get(knob)}
