"""Folders of finished runs, made without training: what a report reads of them is JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.yaml import dump_yaml

SETTINGS = {
    "extractor": "digits", "weights": "abc", "layers": ["logits", "features"], "k": 3, "reference_sha256": "def"
}  # fmt: skip


def make_run(
    path: Path,
    name: str = "digits_lora",
    *overrides: str,
    accuracy: float = 0.9,
    validation: float | None = None,
    params: int = 100,
    status: str = "completed",
    samples: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    grid: bytes | None = None,
    found_rate: float | None = None,
    notes: tuple[str, ...] = (),
) -> Path:
    """A run of a shipped recipe with these results; `samples` are the metrics of its generated images.

    With a `validation` accuracy it tells how it went, and keeps a confusion matrix.
    """
    recipe = load_recipe(name, overrides).to_dict()
    path.mkdir(parents=True)
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
    if recipe["task"] == "diffusion":
        metrics.pop("accuracy")
    about: dict[str, Any] = {
        "status": status, "recipe": recipe, "params": {"adapter": params, "head": 0, "base": 300_000},
        "metrics": {**metrics, "accuracy_before": 0.5},
    }  # fmt: skip
    if notes:
        about["notes"] = notes
    if found_rate is not None:
        recipe["train"]["optimizer"]["lr"] = about["found_rate"] = found_rate
    if validation is not None:
        about["metrics"] |= {"val_accuracy": validation, "best_step": 20}
        evaluated = [{"step": s, "eval": {"accuracy": validation * s / 20, "loss": 1 - validation}} for s in (10, 20)]
        lines = [{"step": step, "loss": 2 - step / 20, "lr": 0.1} for step in (10, 20)] + evaluated
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
        (path / "confusion.csv").write_text("true,taken_for,images\nzero,zero,4\none,zero,1\none,one,5\n")
    (path / "recipe.yaml").write_text(dump_yaml(recipe))
    (path / "run.json").write_text(json.dumps(about))
    (path / "adapter.safetensors").write_bytes(b"0" * params)
    (path / "eval.json").write_text(json.dumps({"task": recipe["task"], "metrics": metrics, "n": 500}))
    if samples is not None:
        (path / "samples").mkdir()
        found = {"metrics": samples, "settings": SETTINGS | (settings or {}), "reference": {"name": "digits:test"}}
        (path / "samples" / "metrics.json").write_text(json.dumps(found))
        if grid:
            (path / "samples" / "grid.png").write_bytes(grid)
    return path
