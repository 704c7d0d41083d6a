"""Build a base from the `model` section of a recipe: a timm model, a U-Net, a pipeline's denoiser, a language model, or
a shipped base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import _builder
from torch import nn

from superlora_cli.errors import UsageError, did_you_mean, first_line
from superlora_cli.models.base import Base
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.models.heads import new_head, select_rows
from superlora_cli.models.hub import cache_folder, cache_if_unreachable
from superlora_cli.models.language import build_language, is_language
from superlora_cli.models.loading import Filter, load_weights
from superlora_cli.models.pipelines import build_pipeline, is_pipeline
from superlora_cli.models.quantising import KEY

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import ModelSection

UNETS = ("cfg_unet", "diffusers")  # bases that predict noise


def build(section: ModelSection, *, classes: int | None, image_size: int | None = None, weights: bool = True) -> Base:
    """Build the base that a recipe's `model` section asks for.

    Args:
        section: name, pretrained, head, checkpoint, kwargs.
        classes: number of classes of the data, needed for a new head.
        image_size: that of the data, if the recipe sets one.
        weights: False builds shapes only (on the meta device): no download, no memory.

    Raises:
        UsageError: the name is unknown, timm (or a U-Net) refuses the arguments, or the weights are not available.
    """
    embedded = EMBEDDED.get(section.name)
    if section.quantize and not (is_language(section.name) or is_pipeline(section.name)):
        raise UsageError("applies to language models and text-to-image pipelines", where=KEY, hint="leave it out")
    if is_language(section.name):
        return build_language(section, classes=classes, weights=weights)
    if is_pipeline(section.name):
        return build_pipeline(section, image_size=image_size, weights=weights)
    if section.name in UNETS or (embedded and embedded.architecture in UNETS):
        from superlora_cli.models.unets import build_unet

        return build_unet(section, image_size=image_size, weights=weights)
    architecture = embedded.architecture if embedded else section.name
    if ":" not in architecture and architecture.partition(".")[0] not in timm.list_models():
        hint = did_you_mean(architecture, [*EMBEDDED, *timm.list_models()]) or "superlora ls models"
        raise UsageError(f"unknown model '{section.name}'", where="model.name", hint=hint)
    arguments = {**(embedded.arguments if embedded else {}), **section.kwargs}
    if section.head == "new":
        if classes is None:
            raise UsageError("the number of classes is unknown", where="data.num_classes", hint="set it")
        arguments["num_classes"] = classes
    elif embedded:
        arguments["num_classes"] = embedded.classes
    own = weights and section.checkpoint is not None
    fetch = weights and not own and section.pretrained and not embedded
    filters: list[Filter | None] = []
    with _nothing_loaded(filters) if own else nullcontext():
        model = _create(section.name, architecture, arguments, pretrained=fetch or own, fetch=fetch, meta=not weights)
    new, note = section.head == "new", None
    if own:
        note = load_weights(model, Path(str(section.checkpoint)), new_head=new, filter_=next(iter(filters), None))
    elif weights and embedded and section.pretrained:
        load_weights(model, ASSETS / embedded.weights, new_head=new)
    if not isinstance(section.head, str):
        select_rows(model, section.head.select)
        arguments["num_classes"] = len(section.head.select)
    config = resolve_data_config(model=model)
    usual = embedded.image_size if embedded else config["input_size"][-1]
    size = image_size or arguments.get("img_size") or usual
    trained = new_head(model, section.name) if new else ()
    look = int(size), tuple(config["mean"]), tuple(config["std"])
    return Base(model, architecture, arguments, *look, trained_head=trained, note=note)


def _create(
    name: str, architecture: str, arguments: Mapping[str, Any], *, pretrained: bool, fetch: bool, meta: bool
) -> nn.Module:
    """Create the model; `fetch`: whether its pretrained weights are downloaded."""
    remote = fetch or architecture.startswith("hf-hub:")
    reachable = True
    try:
        with (
            cache_if_unreachable() if remote else nullcontext(True) as reachable,
            torch.device("meta" if meta else "cpu"),
        ):
            model: nn.Module = timm.create_model(architecture, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise UsageError(f"timm refuses the arguments of {architecture}: {error}", where="model.kwargs") from None
    except Exception as error:  # timm's models check few of their arguments and may raise anything
        cause = first_line(error)
        if architecture.startswith("local-dir:"):
            hint = "give a folder with config.json and model.safetensors, as timm saves them"
            raise UsageError(cause, where=f"model.name={name}", hint=hint) from None
        if not reachable:
            cause = f"not in the cache {cache_folder()}, and the hub cannot be reached"
        if remote:
            hint = "go online once, copy a cache that has it (HF_HOME), or set model.checkpoint=FILE"
            raise UsageError(f"{architecture}: {cause}", where="model.name", hint=hint) from None
        if isinstance(error, LookupError | ArithmeticError):  # their text alone, such as "'nope'", explains nothing
            cause = f"{type(error).__name__}: {cause}"
        raise UsageError(f"cannot build {architecture}: {cause}", where="model.kwargs") from None
    return model


@contextmanager
def _nothing_loaded(filters: list[Filter | None]) -> Iterator[None]:
    """Inside, timm builds a pretrained model without loading weights, and the filter it would apply to them is added
    to `filters`.

    timm offers no other way to get that filter.
    """
    before = _builder.load_pretrained
    _builder.load_pretrained = lambda model, filter_fn=None, **_: filters.append(filter_fn)
    try:
        yield
    finally:
        _builder.load_pretrained = before
