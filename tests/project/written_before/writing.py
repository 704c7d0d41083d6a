"""The adapters of this folder and what commands say of them, as far as they are the same on every machine.

`python -m tests.project.written_before.writing` writes them; it was run by the code of commit ea869de, under the names
that modules had then. They are there to be compared with, not to be written again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import superlora_cli
from superlora_cli.models.build import build
from superlora_cli.models.embedded import ASSETS
from superlora_cli.opening.build import build_for_training
from superlora_cli.opening.shapes_only import read_adapter
from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.tasks import task_of
from superlora_cli.training.processes import join
from tests.conftest import Result, run_cli

HERE = Path(__file__).parent
TARGETS = ("blocks.0.attn.qkv[q]", "blocks.3.attn.qkv[v]")
FROM_PYTHON: dict[str, dict[str, Any]] = {  # name → what `attach` is told
    "lora": {"method": "lora", "rank": 1, "head": "norm"},
    "lorta": {"method": "lorta", "rank": 2, "groups": 2},
    "projected": {"order": 2, "rank": 2, "projection": "linear_v2", "ratio": 0.1, "alpha": 4.0},
    "nonlinear": {"method": "lorta", "order": 4, "rank": 1, "projection": "nonlinear", "ratio": 0.5, "seed": 3},
    "lonkr": {"method": "lonkr", "rank": 1, "split_dim": 4, "terms": 2},
    "vera": {"method": "vera", "rank": 4},
    "unilora": {"method": "unilora", "rank": 2, "inner": {"dim": 9}},
    "fourierft": {"method": "fourierft", "ratio": 0.01},
    "tinylora": {"method": "tinylora", "inner": {"dim": 3}},
}
FROM_A_RECIPE = {  # name → a shipped recipe with overrides
    "classifier": ("quickstart", "model.head=new", "adapter.targets=[q]", "train.steps=3"),
    "unet": ("digits_unet_lorta5d", "adapter.seed=5", "train.steps=3"),
}
METRICS = {"accuracy": 0.5, "best_step": 3}
COMMANDS = (  # in this order, in a folder that holds the adapters; all on standard output is JSON
    "eval classifier.safetensors",
    "eval lorta.safetensors",  # it was saved without a recipe
    "inspect classifier.safetensors",
    "inspect unet.safetensors",
    "inspect vera.safetensors",
    "merge classifier.safetensors --out merged.safetensors",
    "merge classifier.safetensors --out merged.safetensors",  # which exists by now
    "merge unet.safetensors --base merged.safetensors --out other.safetensors",  # of another model
    "export classifier.safetensors --to delta --out delta.safetensors",
    "export classifier.safetensors --to peft-lora --rank 2 --out peft",
    "export classifier.safetensors --to nothing --out nothing",
    "combine classifier.safetensors classifier.safetensors --weights 1,-0.5 --out combined.safetensors",
    "combine classifier.safetensors unet.safetensors --out both.safetensors",
    "count-params --groups 4 --order 5",
    "count-params --order 1 --rank 2",
    "validate quickstart adapter.ranks=2",
)


def filled(tensors: dict[str, Tensor], scale: float) -> None:
    """Set tensors to numbers in (−scale, scale) that look drawn, and are the same on every machine."""
    with torch.no_grad():
        for number, name in enumerate(sorted(tensors)):
            places = torch.arange(tensors[name].numel(), dtype=torch.float64)
            drawn = ((places + 1) * (number + 2) * 0.6180339887498949) % 1 - 0.5
            tensors[name].copy_((2 * scale * drawn).view(tensors[name].shape))


def written(folder: Path) -> Iterator[Path]:
    """Write every adapter into a folder."""
    base = build(ModelSection(name="glyphs_vit", head="frozen"), classes=None).model
    for name, knobs in FROM_PYTHON.items():
        adapter = superlora_cli.attach(base, TARGETS, **knobs)
        filled(dict(adapter.factors.items()), 0.5)
        file = folder / f"{name}.safetensors"
        superlora_cli.save(base, file, metrics=METRICS)
        superlora_cli.detach(base)
        yield file
    for name, (recipe, *overrides) in FROM_A_RECIPE.items():
        loaded = load_recipe(recipe, overrides)
        processes = join(loaded.train)
        task = task_of(loaded)(build_for_training(loaded), processes)
        filled(task.trained(), 0.5)
        filled(task.head(), 0.05)
        ((_, content),) = task.exported(METRICS).items()
        file = folder / f"{name}.safetensors"
        file.write_bytes(content)
        processes.end()
        yield file


def seen(deltas: dict[str, Tensor]) -> dict[str, list[float]]:
    """Of every ΔW its norm, and its products with two waves over its elements."""
    found = {}
    for name, delta in deltas.items():
        flat = delta.detach().double().flatten()
        waves = [torch.cos(torch.arange(len(flat), dtype=torch.float64) * step) for step in (0.1, 1.7)]
        found[name] = [flat.norm().item(), *((flat * wave).sum().item() for wave in waves)]
    return found


def deltas_of(file: Path) -> dict[str, Tensor]:
    """ΔW by the name of its target: on a model where the file has no recipe."""
    if file.stem in FROM_A_RECIPE:
        read = read_adapter(file)
        return {target.name: delta for target, delta in zip(read.targets, read.deltas(), strict=True)}
    base: nn.Module = build(ModelSection(name="glyphs_vit", head="frozen"), classes=None).model
    adapter = superlora_cli.load(base, file)
    return {target.name: delta for target, delta in zip(adapter.targets, adapter.compute(), strict=True)}


def answers(folder: Path) -> Iterator[tuple[str, Result]]:
    """What commands say in a folder that holds the adapters."""
    with contextlib.chdir(folder):
        for words in COMMANDS:
            yield words, run_cli(*words.split(), "--json")


def main() -> None:
    """Write all that this folder has."""
    files = list(written(HERE))
    (HERE / "deltas.json").write_text(json.dumps({f.stem: seen(deltas_of(f)) for f in files}, indent=1) + "\n")
    place = HERE / "place"
    place.mkdir()
    for file in files:
        shutil.copy(file, place)
    said = [{"command": words, "code": told.code, "said": json.loads(told.out)} for words, told in answers(place)]
    text = json.dumps(said, indent=1, ensure_ascii=False).replace(str(ASSETS), "ASSETS")
    (HERE / "answers.json").write_text(text + "\n")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
