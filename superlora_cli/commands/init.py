"""The starting recipe that `superlora init` writes for a user's own images."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from superlora_cli.adapter.config import RATE
from superlora_cli.commands.starting import build_start, first_targets, inline
from superlora_cli.data.folder import list_folder
from superlora_cli.data.known import is_embedded
from superlora_cli.data.labelled import find_tables, list_table
from superlora_cli.data.sizes import folder_sizes
from superlora_cli.errors import UsageError
from superlora_cli.models.base import Base
from superlora_cli.models.heads import classifiers
from superlora_cli.models.patterns import CONVOLUTIONS
from superlora_cli.models.targets import weights_of
from superlora_cli.opening.build import Built
from superlora_cli.recipe.defaults import HEAD_RATE
from superlora_cli.recipe.schema import DataSection
from superlora_cli.recipe.yaml import parse_yaml
from superlora_cli.tasks.images import refusal
from superlora_cli.tasks.reading import SPARES

EPOCHS, FEWEST, MOST = 20, 300, 5000  # epochs; fewest and most steps
BATCH, EVALUATIONS = 64, 10
ENOUGH = 500  # validation images needed to select a step: with fewer, an early one wins by chance
LARGE = 224  # pixels; without a GPU a model made for larger images gets this size
# The first that hold `LEAST` of the body, else all of it:
TARGETS = (["q", "v"], ["mlp"], ["all-linear"], [CONVOLUTIONS])
LEAST = 0.02  # q and v are at least 1/25 of a model; a stem, or a layer next to the classifier, is less
TEMPLATE = """\
# {model} on the images in {data}: {classes} classes, {images:,} training images.
# superlora train {file}   # {adapter:,} parameters + head {head:,}
task: classification
seed: 0
model: {{name: {model_yaml}, pretrained: {pretrained}, head: new{kwargs}}}   # a new head, trained beside the adapter
data:
  name: {data_yaml}{size}
  validation: 0.1   # a tenth is held out to judge by{test}
  augment: none   # crop_flip cuts and mirrors at random: for photographs and long trainings
  workers: {workers}
adapter: {{method: lorta, targets: {targets}, order: 3, rank: 4}}   # a higher rank has more parameters
train:
  steps: {steps}   # {epochs:.0f} epochs
  batch_size: {batch}
  precision: {precision}
  # superlora find-rate {file} tries rates on these images
  optimizer: {{name: AdamW, lr: {rate}, head_lr: {head_rate}, weight_decay: 0.0}}
  scheduler: {{name: OneCycleLR, pct_start: 0.1}}
  checkpoint_every: {every}
eval: {evaluation}
"""


@dataclass(frozen=True)
class Start:
    """A starting recipe.

    Attributes:
        text: the YAML.
        images: number of training images, without those held out.
        adapter, head: numbers of trained parameters.
        notes: on the data, one line each.
    """

    text: str
    classes: int
    images: int
    adapter: int
    head: int
    notes: tuple[str, ...]


def starting_recipe(
    model: str, data: Path, file: Path, *, pretrained: bool = True, image_size: int | None = None
) -> Start:
    """A recipe that adapts `model` to the folder of images `data`, to be written to `file`.

    The model is built without weights to check that it exists and to find the weights that can be adapted.

    Args:
        image_size: in pixels; default: the model's, but at most `LARGE` without a GPU.

    Raises:
        UsageError: there is no such model, no folder of images, or the model does not accept the image size.
    """
    if not data.is_dir():
        hint = "give a folder with one sub-folder of images per class, or with train and test folders of such"
        raise UsageError("no such folder", where=str(data), hint=hint)
    classes, (_, _, test) = list_table(data) if find_tables(data) else list_folder(data)
    sizes = folder_sizes(data, DataSection(name=str(data), validation=0.1, split="content"))
    images, judged = sizes["train"], sizes["validation"]
    batch = min(BATCH, max(1, images))
    steps = min(MOST, max(FEWEST, round(EPOCHS * images / batch)))
    every = max(1, steps // EVALUATIONS)
    folder = f"./{data}" if is_embedded(str(data)) else str(data)  # not the embedded data of the same name
    settings: dict[str, Any] = {
        "model": model, "data": data, "file": shlex.quote(str(file)), "classes": len(classes), "images": images,
        "model_yaml": inline(model), "data_yaml": inline(folder), "pretrained": inline(pretrained),
        "workers": min(8, (os.cpu_count() or 1) - 1), "test": ", a tenth to test it" if test is None else "",
        "steps": steps, "epochs": steps / max(1, images // batch), "batch": batch, "every": every,
        "evaluation": f"{{every: {every}}}   # the best of these steps is kept" if judged >= ENOUGH else
        f"{{}}   # at the end, whose step is kept: {judged} validation images are too few to choose one by",
        "precision": "bf16" if torch.cuda.is_available() else "fp32", "rate": RATE, "head_rate": HEAD_RATE,
        "kwargs": "", "size": "", "adapter": 0, "head": 0,
    }  # fmt: skip
    own = _base(settings)
    wanted = image_size or (own.image_size if torch.cuda.is_available() else min(LARGE, own.image_size))
    if wanted != own.image_size:
        try:
            smaller = settings | _sized(own, wanted, asked=image_size is not None)
            _base(smaller)
            settings = smaller
        except UsageError:
            if image_size is not None:
                raise
    built = first_targets(TEMPLATE, settings, (*TARGETS, _body(own)), lambda built: _share(built) >= LEAST)
    adapter, head = built.params["adapter"], built.params["head"]
    text = TEMPLATE.format(**settings | {"adapter": adapter, "head": head})
    notes = tuple(f"the {split} split will be empty: {SPARES}" for split, size in sizes.items() if not size)
    return Start(text, len(classes), images, adapter, head, notes)


def _sized(own: Base, size: int, *, asked: bool) -> dict[str, str]:
    """The parts of the recipe that set an image size other than the model's own."""
    fixed = (getattr(own.model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    less = (own.image_size / size) ** 2
    why = f"the model's own is {own.image_size}" + (
        "" if asked else f", {less:.0f} times the work: too much without a GPU"
    )
    return {
        "kwargs": f", kwargs: {{img_size: {size}}}" if fixed else "",
        "size": f"\n  image_size: {size}   # {why}",
    }


def _base(settings: Mapping[str, Any]) -> Base:
    """The base of a starting recipe, without weights; its adapter is left out."""
    plain = parse_yaml(TEMPLATE.format(**settings, targets="[q]")).data
    del plain["adapter"]
    base = build_start(plain).base
    try:
        base.model.eval()(torch.empty(1, 3, base.image_size, base.image_size, device="meta"))
    except (AssertionError, RuntimeError, ValueError, ArithmeticError) as error:
        hint = "a multiple of its patch size, or its own size"
        raise UsageError(refusal(base.image_size, error), where="--image-size", hint=hint) from None
    return base


def _parts(model: nn.Module) -> dict[str, dict[str, int]]:
    """Numbers of elements of linear and convolutional weights by name, by the part of the model that they are in.

    A part with the classifier is left out, as EfficientViT's with a hidden layer.
    """
    heads = {name.partition(".")[0] for name in classifiers(model)}
    parts: dict[str, dict[str, int]] = {}
    for name, weight in weights_of(model).items():
        if (part := name.partition(".")[0]) not in heads:
            parts.setdefault(part, {})[name] = math.prod(weight.shape)
    return parts


def _body(base: Base) -> list[str]:
    """Patterns for all linear and convolutional weights except the head's, and the first layer's if it is a part."""
    parts = _parts(base.model)
    return [f"{part}.*" for index, (part, own) in enumerate(parts.items()) if index or len(own) > 1] or ["*"]


def _share(built: Built) -> float:
    """Share of the body's elements that are adapted."""
    assert built.adapter is not None
    body = {name: size for own in _parts(built.model).values() for name, size in own.items()}
    adapted = sum(math.prod(target.shape) for target in built.adapter.targets if target.module in body)
    return adapted / max(1, sum(body.values()))
