"""`superlora inspect`: what is in an adapter file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli.console import print_json, print_pairs


def command(
    adapter: Annotated[Path, typer.Argument(help="An adapter file, or a run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show an adapter's knobs, targets, tensors, base, recipe and metrics."""
    from superlora_cli.adapter import store
    from superlora_cli.tasks.build import resolve_result

    path = resolve_result(adapter)
    stored = store.load(path)
    about: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "params": {
            "adapter": sum(tensor.numel() for tensor in stored.factors.values()),
            "head": sum(tensor.numel() for tensor in stored.head.values()),
        },
        "config": json.loads(stored.config.to_json()),
        "targets": list(stored.patterns),
        "base": dict(stored.base),
        "classes": list(stored.classes),
        "metrics": dict(stored.metrics),
        "origin": dict(stored.origin),
        "tensors": {name: list(tensor.shape) for name, tensor in {**stored.factors, **stored.head}.items()},
        "recipe": dict(stored.recipe),
    }
    if as_json:
        print_json(about)
        return
    metrics = stored.metrics.items()
    rows = [
        ("parameters", f"{about['params']['adapter']:,} adapter, {about['params']['head']:,} head"),
        ("base", f"{stored.base['name']}  sha256 {stored.base['sha256'][:16]}…  {stored.base['dtype']}"),
        ("targets", ", ".join(stored.patterns)),
        *([("classes", _few(stored.classes))] if stored.classes else []),
        ("knobs", ", ".join(f"{knob} {value}" for knob, value in _set_knobs(about["config"]).items())),
        *((name, " × ".join(map(str, shape))) for name, shape in about["tensors"].items()),
        *((name, f"{value:.4f}" if isinstance(value, float) else str(value)) for name, value in metrics),
    ]
    print_pairs(f"{path}  {about['bytes']:,} bytes", rows)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, … {names[-1]} ({len(names)})"


def _set_knobs(config: dict[str, Any]) -> dict[str, Any]:
    """The knobs that differ from their defaults, and the four that everybody asks for."""
    from superlora_cli.adapter.config import AdapterConfig

    default = json.loads(AdapterConfig().to_json())
    always = ("groups", "order", "rank", "fold")
    return {knob: value for knob, value in config.items() if knob in always or value != default[knob]}
