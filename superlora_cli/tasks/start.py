"""A starting recipe for one's own images: what `superlora init` writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superlora_cli.data.folder import list_folder
from superlora_cli.errors import UsageError
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.yaml import dump_yaml
from superlora_cli.tasks.build import Built, build_for_training

EPOCHS, FEWEST, MOST = 20, 300, 5000  # epochs; steps at least and at most
BATCH, EVALUATIONS = 64, 10
EMBEDDED = ("digits", "glyphs")  # a folder of that name is written ./digits
TARGETS = (["q", "v"], ["mlp"], ["all-linear"], ["*conv*"])  # the first that the model has
TEMPLATE = """\
# {model} on the images in {data}: {classes} classes, {images:,} training images.
# superlora train {file}   # {adapter:,} parameters + head {head:,}
task: classification
seed: 0
model: {{name: {model_yaml}, pretrained: {pretrained}, head: new}}   # the new head is trained beside the adapter
data:
  name: {data_yaml}
  validation: 0.1   # a tenth is held out to choose the best step{test}
  augment: crop_flip   # cut and mirrored at random; none where borders or left and right matter, as in text
  workers: {workers}
adapter: {{method: lorta, targets: {targets}, order: 3, rank: 4, alpha: 4}}   # a higher rank: more parameters
train:
  steps: {steps}   # {epochs:.0f} epochs
  batch_size: {batch}
  precision: {precision}
  optimizer: {{name: SGD, lr: 0.05, momentum: 0.9, weight_decay: 0.0, head_lr: 0.05}}
  scheduler: {{name: OneCycleLR, cycle_momentum: false}}
  checkpoint_every: {every}
eval: {{every: {every}}}
"""


@dataclass(frozen=True)
class Start:
    """A starting recipe.

    Attributes:
        text: the YAML.
        adapter, head: numbers of trained parameters.
    """

    text: str
    classes: int
    images: int
    adapter: int
    head: int


def starting_recipe(model: str, data: Path, file: Path, *, pretrained: bool = True) -> Start:
    """A recipe that adapts `model` to the folder of images `data`; `file` is where it will be written.

    The model is built without weights to see that it exists and which of its weights can be adapted.

    Raises:
        UsageError: no such model, or no folder of images.
    """
    import torch

    if not data.is_dir():
        hint = "a folder with a sub-folder of images per class, or with train and test folders of such"
        raise UsageError("no such folder", where=str(data), hint=hint)
    classes, (train, validation, test) = list_folder(data)
    images = len(train or [])
    held_out = (validation is None) + (test is None)
    left = images - held_out * round(0.1 * images)
    batch = min(BATCH, max(1, left))
    steps = min(MOST, max(FEWEST, round(EPOCHS * left / batch)))
    folder = f"./{data}" if str(data) in EMBEDDED else str(data)
    settings: dict[str, Any] = {
        "model": model, "data": data, "file": file, "classes": len(classes), "images": images,
        "model_yaml": _inline(model), "data_yaml": _inline(folder), "pretrained": _inline(pretrained),
        "workers": min(8, (os.cpu_count() or 1) - 1), "test": ", a tenth to test it" if test is None else "",
        "steps": steps, "epochs": steps * batch / max(1, left), "batch": batch, "every": max(1, steps // EVALUATIONS),
        "precision": "bf16" if torch.cuda.is_available() else "fp32",
    }  # fmt: skip
    for targets in TARGETS:
        counts = {"targets": dump_yaml(targets).strip(), "adapter": 0, "head": 0}
        try:
            built = _built(TEMPLATE.format(**settings, **counts))
        except UsageError as error:
            if targets == TARGETS[-1] or "targets" not in (error.where or ""):
                raise
            continue
        adapter, head = built.params["adapter"], built.params["head"]
        text = TEMPLATE.format(**settings, **counts | {"adapter": adapter, "head": head})
        return Start(text, len(classes), images, adapter, head)
    raise AssertionError


def _built(text: str) -> Built:
    from superlora_cli.recipe.yaml import parse_yaml

    return build_for_training(recipe_from_dict(parse_yaml(text).data, "the starting recipe"), weights=False)


def _inline(value: str | bool) -> str:
    """A scalar as it stands in a YAML flow mapping."""
    return dump_yaml([value]).strip().removeprefix("[").removesuffix("]")
