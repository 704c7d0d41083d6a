"""Shapes of common base models, so that an adapter can be counted without building its model.

`catalogue.jsonl` has one line per architecture: its number of parameters without the classifier, the number of classes
of every pretrained tag (the first is the default), and its linear and convolutional weights in model order. There,
`["blocks", 0, 12, [["attn.qkv", [2304, 768]], ...]]` stands for `blocks.0.attn.qkv` ... `blocks.11.…`, and a weight
with 0 rows is the classifier, which has as many rows as the tag has classes. In the same form, but by parameter name,
follow the parameters of normalisation layers (`norms`) and the `biases` of all other layers except the classifier. The
file is rebuilt from the libraries by

    python -m superlora_cli.models.catalogue --write
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.models.descriptions import DENOISERS, DESCRIPTIONS, REPOSITORIES
from superlora_cli.models.embedded import EMBEDDED, LANGUAGE, PIPELINES
from superlora_cli.models.language_shapes import SHAPES
from superlora_cli.models.parts import Part, chosen, parts_of
from superlora_cli.models.patterns import Weight, expand
from superlora_cli.models.rolled import Shapes, roll, unroll

if TYPE_CHECKING:
    from torch import nn

DATA = Path(__file__).with_name("catalogue.jsonl")

ARCHITECTURES = (
    *("vit_tiny_patch16_224", "vit_tiny_patch16_384", "vit_small_patch16_224", "vit_small_patch32_224"),
    *("vit_small_patch16_384", "vit_base_patch32_224", "vit_base_patch16_224", "vit_base_patch16_384"),
    *("vit_base_patch8_224", "vit_large_patch32_384", "vit_large_patch16_224", "vit_large_patch16_384"),
    *("vit_huge_patch14_224", "vit_base_patch16_clip_224", "vit_large_patch14_clip_224"),
    *("vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2"),
    *("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "deit_base_patch16_384"),
    *("deit3_small_patch16_224", "deit3_medium_patch16_224", "deit3_base_patch16_224"),
    *("deit3_large_patch16_224", "deit3_huge_patch14_224"),
    *("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "swin_base_patch4_window7_224"),
    *("swin_base_patch4_window12_384", "swin_large_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "swinv2_small_window8_256", "swinv2_base_window8_256"),
    *("swinv2_tiny_window16_256", "swinv2_base_window16_256"),
    *("beit_base_patch16_224", "beit_large_patch16_224", "beitv2_base_patch16_224", "beitv2_large_patch16_224"),
    *("eva02_tiny_patch14_224", "eva02_small_patch14_224", "eva02_base_patch14_224", "eva02_large_patch14_224"),
    *("eva02_small_patch14_336", "eva02_base_patch14_448", "eva02_large_patch14_448"),
    *("convnext_nano", "convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
)


@dataclass(frozen=True)
class Base:
    """What counting needs to know about a base model.

    Attributes:
        name: as given by the caller, including the tag.
        params: number of parameters of the whole model with its own classifier.
        weights: linear and convolutional weights by module name, in model order.
        classifiers: module name → input features, for the layers that a new head replaces.
        parts: biases and parameters of normalisation layers, without the classifier's, by name.
    """

    name: str
    params: int
    weights: Mapping[str, Weight]
    classifiers: Mapping[str, int]
    parts: Mapping[str, Part]

    def targets(self, patterns: Sequence[str]) -> list[TargetShape]:
        """The rows that `patterns` name, in model order.

        Raises:
            UsageError: a pattern matches nothing, or its slice is not a contiguous block of rows.
        """
        return [rows.flat for rows in expand(self.weights, patterns)]

    def also(self, kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that the knob `also` trains, by name; raises as `parts.chosen`."""
        return {name: part.shape for name, part in chosen(self.parts, kinds).items()}

    def new_head(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Shapes of a new classifier, weight (classes, features) and bias (classes,), by parameter name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, features in self.classifiers.items():
            shapes |= {f"{name}.weight": (classes, features), f"{name}.bias": (classes,)}
        return shapes


def targets(name: str, patterns: Sequence[str]) -> list[TargetShape]:
    """The targets of model `name` as (rows, columns), the same as `models.targets.expand` finds on the built model.

    >>> [(target.name, target.rows, target.columns) for target in targets("glyphs_vit", ["v"])][:2]
    [('blocks.0.attn.qkv[128:192]', 64, 64), ('blocks.1.attn.qkv[128:192]', 64, 64)]
    """
    return find(name).targets(patterns)


def names() -> list[str]:
    """The architectures in the catalogue, in order."""
    return list(_lines())


def find(name: str, kwargs: Mapping[str, Any] | None = None) -> Base:
    """The base `name`, from the catalogue, else built by timm without memory for its weights, with a notice.

    Args:
        name: an architecture, with or without `.tag`, or a pipeline of the hub, of which only the denoiser is known.
        kwargs: further arguments of `timm.create_model`.

    Raises:
        UsageError: the name is unknown; the hint suggests a similar one.
    """
    known = REPOSITORIES.get(name.partition("@")[0])
    if known and not set(kwargs or ()) - {"torch_dtype"}:
        return replace(find(known), name=name)
    architecture, _, tag = (name, "", "") if name in _lines() else name.partition(".")  # `sd-1.5` has no tag 5
    line = _lines().get(architecture)
    if line and not kwargs:
        entry = json.loads(line)
        if tag in entry["classes"] or not tag:
            return _base(name, entry, tag or next(iter(entry["classes"])))
    elif architecture in ("glyphs_vit", "digits_classifier", "llama_7b", *DENOISERS, *LANGUAGE, *SHAPES):
        raise UsageError(f"{architecture} has no variants", where="model", hint=f"use the plain name {architecture}")
    return _built(name, dict(kwargs or {}))


@cache
def _lines() -> dict[str, str]:
    """Name → its line of the file, unparsed."""
    lines = DATA.read_text(encoding="utf-8").splitlines()
    return {line[len('{"name":"') : line.index('",')]: line for line in lines}


def _base(name: str, entry: dict[str, Any], tag: str) -> Base:
    classes = entry["classes"][tag]
    fused = {name: tuple(map(tuple, rows)) for name, rows in entry.get("rows", {}).items()}
    weights, classifiers = {}, {}
    for module, shape in unroll(entry["weights"]):
        if shape[0]:
            weights[module] = Weight(shape, rows=fused.get(module.rpartition(".")[2], ()))
        else:
            classifiers[module] = shape[1]
            if classes:
                weights[module] = Weight((classes, *shape[1:]))
    params = entry["body"] + sum(classes * (features + 1) for features in classifiers.values())
    parts = {
        key: Part(shape, norm)
        for kind, norm in (("biases", False), ("norms", True))
        for key, shape in unroll(entry[kind])
    }
    return Base(name, params, weights, classifiers, parts)


def _built(name: str, kwargs: dict[str, Any]) -> Base:
    from superlora_cli.models.language import is_language
    from superlora_cli.models.pipelines import is_pipeline
    from superlora_cli.models.targets import weights_of

    other = name in ("cfg_unet", "diffusers", "glyphs_unet") or is_pipeline(name) or is_language(name)
    library = "torch" if other else "timm"
    sys.stderr.write(f"not in the catalogue: building {' '.join([name, *kwargs])} with {library}\n")
    if other:
        model = _built_base(name, kwargs)
        return Base(name, _params(model), weights_of(model), {}, parts_of(model))
    import timm

    if ":" not in name and not timm.is_model(name):
        hint = did_you_mean(name.partition(".")[0], [*names(), *timm.list_models()]) or "superlora ls models"
        raise UsageError(f"unknown model '{name}'", where="model.name", hint=hint)
    try:
        model = _create(name, **kwargs)
        weights, params = weights_of(model), _params(model)
        shapes = _shapes(model)
        classifiers = {module: shape[1] for module, shape in shapes if not shape[0]}
        parts = _parts(model, shapes)
    except Exception as error:  # timm's own refusals: an unknown tag, an argument the model does not take
        text = str(error).replace("\n", " ")
        raise UsageError(f"timm cannot build '{name}': {text}", where="model.name") from None
    return Base(name, params, weights, classifiers, parts)


def _built_base(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """A base that is not timm's, on the meta device."""
    from superlora_cli.models.build import build
    from superlora_cli.recipe.schema import ModelSection

    section = ModelSection(name=name, pretrained=False, head="frozen", kwargs=kwargs)
    return build(section, classes=None, weights=False).model


# The generator.


def write() -> None:
    """Rebuild the data file from timm, from diffusers and from the descriptions of layers."""
    from superlora_cli.models.build import build
    from superlora_cli.recipe.schema import ModelSection

    lines = []
    for name in ARCHITECTURES:
        lines.append(_entry(name, _create(name), _tags(name)))
    for name, embedded in EMBEDDED.items():
        base = build(ModelSection(name=name, head="frozen"), classes=None, weights=False)
        lines.append(_entry(name, base.model, {"": embedded.classes if base.by_timm else 0}))
    for name in PIPELINES:
        lines.append(_entry(name, build(ModelSection(name=name), classes=None, weights=False).model, {"": 0}))
    for name, describe in DESCRIPTIONS.items():
        layers = list(describe())
        shapes = [(layer.name, layer.shape) for layer in layers if layer.shape]
        body = sum(layer.params for layer in layers)
        parts = {key: part for layer in layers for key, part in layer.parts.items()}
        lines.append({"name": name, "body": body, "classes": {"": 0}, "weights": roll(shapes), **_rolled(parts)})
    for name in DENOISERS:
        lines.append(_entry(name, denoiser(name), {"": 0}))
    for name in (*LANGUAGE, *SHAPES):
        lines.append(_entry(name, language_model(name), {"": 0}))
    DATA.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")


def _create(name: str, **kwargs: Any) -> Any:
    """A timm model on the meta device: shapes without memory."""
    import timm
    import torch

    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def denoiser(name: str) -> Any:
    """The denoiser of a pipeline in the catalogue, on the meta device."""
    import diffusers
    import torch

    kind, arguments = DENOISERS[name]
    with torch.device("meta"):
        return getattr(diffusers, kind)(**arguments)


def language_model(name: str) -> Any:
    """A language model in the catalogue, on the meta device."""
    import torch
    import transformers

    if name in LANGUAGE:
        return _built_base(name, {})
    kind, arguments = SHAPES[name]
    with torch.device("meta"):
        config = getattr(transformers, f"{kind}Config")(**arguments)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _tags(name: str) -> dict[str, int]:
    """Pretrained tag → classes, timm's default first."""
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

    default: Any = get_pretrained_cfg(name)
    classes = {tag.partition(".")[2]: cfg.num_classes for tag, cfg in get_arch_pretrained_cfgs(name).items()}
    return {default.tag or "": default.num_classes} | classes


def _entry(name: str, model: nn.Module, tags: Mapping[str, int]) -> dict[str, Any]:
    shapes = _shapes(model)  # this gives a classifier to a model without one
    own = sum(model.get_parameter(key).numel() for n, s in shapes if not s[0] for key in (f"{n}.weight", f"{n}.bias"))
    weights, parts = roll(shapes), _parts(model, shapes)
    body = {"name": name, "body": _params(model) - own, "classes": dict(tags), "weights": weights, **_rolled(parts)}
    return body | ({"rows": rows} if (rows := _rows(model)) else {})


def _rows(model: nn.Module) -> dict[str, Any]:
    """Where q, k and v are in fused weights that do not hold them in equal blocks, by the last part of their names."""
    from superlora_cli.models.targets import weights_of

    return {name.rpartition(".")[2]: weight.rows for name, weight in weights_of(model).items() if weight.rows}


def _parts(model: nn.Module, shapes: Shapes) -> dict[str, Part]:
    """`parts_of` a model except those of its classifier, which has 0 rows in `shapes`."""
    heads = {f"{name}.bias" for name, shape in shapes if not shape[0]}
    return {name: part for name, part in parts_of(model).items() if name not in heads}


def _rolled(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Parts in the form of the file."""
    kinds = (("biases", False), ("norms", True))
    return {key: roll([(name, part.shape) for name, part in parts.items() if part.norm == norm]) for key, norm in kinds}


def _shapes(model: Any) -> Shapes:
    """Shapes of the weights, with 0 rows for the classifier; a model without a classifier is given one first."""
    from superlora_cli.models.targets import weights_of

    if not hasattr(model, "get_classifier"):
        return [(name, weight.shape) for name, weight in weights_of(model).items()]
    if not model.num_classes:
        import torch

        with torch.device("meta"):
            model.reset_classifier(1)
    return [
        (name, (0, *weight.shape[1:]) if weight.classifies and weight.shape[0] == model.num_classes else weight.shape)
        for name, weight in weights_of(model).items()
    ]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m superlora_cli.models.catalogue --write")
    write()
