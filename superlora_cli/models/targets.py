"""Expand target patterns to weights of a model: `models.patterns` applied to the names and shapes of its modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from superlora_cli.adapter.store import StoredAdapter, digest_targets
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import UsageError
from superlora_cli.models.conv1d import has_conv1d
from superlora_cli.models.fused import rows_of
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.patterns import Rows, Weight
from superlora_cli.models.patterns import expand as expand_weights

BESIDE = "superlora_beside"  # attribute of a model: names of children that are parts beside it

# timm's attention layers in whose fused weight q, k and v are not equal blocks of rows: most split the rows into heads
# first and then each head into q, k, v; some have blocks of unequal size. The function says when.
MIXED: dict[str, Callable[[Any], bool]] = {
    "timm.layers.attention2d.Attention2d": lambda layer: layer.head_first,
    "timm.layers.bottleneck_attn.BottleneckAttn": lambda layer: layer.dim_out_qk != layer.dim_out_v,
    "timm.layers.halo_attn.HaloAttn": lambda layer: True,
    "timm.layers.lambda_layer.LambdaLayer": lambda layer: True,
    "timm.models.cpubone.ConvAttention": lambda layer: True,
    "timm.models.efficientformer.Attention": lambda layer: True,
    "timm.models.efficientvit_mit.LiteMLA": lambda layer: True,
    "timm.models.efficientvit_msra.CascadedGroupAttention": lambda layer: True,
    "timm.models.gcvit.WindowAttentionGlobal": lambda layer: layer.use_global,
    "timm.models.levit.Attention": lambda layer: True,
    "timm.models.levit.AttentionDownsample": lambda layer: True,
    "timm.models.lowformer.ConvAttention": lambda layer: True,
    "timm.models.maxxvit.Attention2d": lambda layer: layer.head_first,
    "timm.models.maxxvit.AttentionCl": lambda layer: layer.head_first,
    "timm.models.mobilevit.LinearSelfAttention": lambda layer: True,
    "timm.models.shvit.SHSA": lambda layer: True,
    "timm.models.tiny_vit.Attention": lambda layer: True,
    "timm.models.vision_transformer.DiffParallelScalingBlock": lambda layer: True,
    "timm.models.vision_transformer.ParallelScalingBlock": lambda layer: True,
}


def expand(
    model: nn.Module, patterns: Iterable[str], *, without: Collection[str] = (), earlier: bool = False
) -> list[Target]:
    """The targets that `patterns` match, without repetition, in model order and by row within a weight.

    >>> layers = nn.ModuleDict({"qkv": nn.Linear(64, 192), "out": nn.Conv2d(64, 32, 3)})
    >>> [(target.name, target.shape) for target in expand(layers, ["v", "o*"])]  # rows × what they multiply
    [('qkv[128:192]', (64, 64)), ('out', (32, 64, 3, 3))]

    A part that is `beside` the model itself, such as a text encoder, only has targets by patterns that begin with its
    name.

    Args:
        without: parameters, such as a head's, that short names leave out.
        earlier: short names as earlier versions meant them.

    Raises:
        UsageError: a pattern matches nothing (the message names it and the most similar names), or its slice is not a
            contiguous block of rows.
    """
    weights, beside = weights_of(model, earlier=earlier), parts_beside(model)
    found: set[Target] = set()
    for pattern in patterns:
        part = part_named(pattern, beside)
        own = {name: weight for name, weight in weights.items() if part_named(name + ".", beside) == part}
        try:
            found.update(expand_weights(own, [pattern], without=without, earlier=earlier))
        except UsageError as error:
            if not has_conv1d(model):
                raise
            hint = "its layers are Conv1D, not linear: superlora_cli.models.conv1d.as_linear(model) exchanges them"
            raise UsageError(error.message, where=error.where, hint=hint) from None
    order = {name: index for index, name in enumerate(weights)}
    ordered = sorted(found, key=lambda rows: (order[rows.module], rows.start))
    return _tied(dict(model.named_modules()), ordered)


def expand_stored(model: nn.Module, stored: StoredAdapter) -> list[Target]:
    """The targets that a stored adapter was trained on, whichever version wrote it; others if the model has others."""
    found = [expand(model, stored.patterns, without=stored.head)]
    if digest_targets(found[0]) != stored.targets_digest:
        found += [expand(model, stored.patterns, without=stored.head, earlier=True)]
    return next((targets for targets in found if digest_targets(targets) == stored.targets_digest), found[0])


def part_named(pattern: str, parts: Iterable[str]) -> str | None:
    r"""Which of some parts of a model a target pattern begins with.

    >>> part_named("text_encoder.*.q_proj", ["text_encoder"]), part_named(r"re:text_encoder\..*", ["text_encoder"])
    ('text_encoder', 'text_encoder')
    """
    name = re.split(r"\\?\.", pattern.removeprefix("re:"), maxsplit=1)
    return name[0] if len(name) == 2 and name[0] in parts else None


def parts_beside(model: nn.Module) -> tuple[str, ...]:
    """The names of children of a model that are parts beside it."""
    found: tuple[str, ...] = getattr(model, BESIDE, ())
    return found


def set_beside(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Say which children of a model are parts beside it."""
    model.__dict__[BESIDE] = parts


def _tied(modules: dict[str, nn.Module], targets: list[Target]) -> list[Target]:
    """Of modules that share a weight and are targets in the same rows, only the first, with the others as `tied`."""
    rows: dict[str, list[Target]] = {}
    for target in targets:
        rows.setdefault(target.module, []).append(target)
    alike: dict[Any, list[str]] = {}
    for name, own in rows.items():
        weight = modules[name]._parameters.get("weight")
        alike.setdefault((id(weight) if weight is not None else name, *(t[1:3] for t in own)), []).append(name)
    others = {first: tuple(rest) for first, *rest in alike.values()}
    return [target._replace(tied=others[target.module]) for target in targets if target.module in others]


def weights_of(model: nn.Module, *, earlier: bool = False) -> dict[str, Weight]:
    """Every linear and convolutional weight of `model` by module name, in model order.

    Args:
        earlier: as earlier versions, do not take the layer that makes a model's logits for a classifier.
    """
    modules, head = dict(model.named_modules()), set(classifier_parameters(model))
    logits = None if earlier else _output_of(model)
    return {
        name: Weight(
            _shape(module), _mixed(modules, name), f"{name}.weight" in head or module is logits, _rows(modules, name)
        )
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and name.partition(".")[0] != "superlora"
    }


def frozen_experts(model: nn.Module) -> int:
    """The number of parameters in experts that are stacked in one tensor (experts, out, in), so that no pattern matches
    them.
    """
    return sum(
        parameter.numel() for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and "experts" in name.split(".")
    )  # fmt: skip


def _output_of(model: Any) -> nn.Module | None:
    """The layer from which a model of transformers has its logits: `lm_head`, or Whisper's `proj_out`."""
    from_it = getattr(model, "get_output_embeddings", None)
    found: nn.Module | None = from_it() if from_it else None
    return found


def _shape(module: Any) -> tuple[int, ...]:
    """The shape of the weight a layer computes with, even if it stores something else: parametrised, normalised,
    pruned, quantised, not yet initialised."""
    weight = module._parameters.get("weight")
    if weight is not None and not is_lazy(weight) and weight.is_floating_point():
        return tuple(weight.shape)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    sides = (module.out_channels, module.in_channels)
    first, second = reversed(sides) if module.transposed else sides
    return (first, second // module.groups, *module.kernel_size)


def _rows(modules: dict[str, nn.Module], name: str) -> Rows:
    above, _, own = name.rpartition(".")
    return rows_of(own, modules[above])


def _mixed(modules: dict[str, nn.Module], name: str) -> str:
    """The class of the layer above `name` that mixes the rows of q, k and v; empty if there is none."""
    while name:
        name = name.rpartition(".")[0]
        kind = type(modules[name])
        if MIXED.get(f"{kind.__module__}.{kind.__qualname__}", lambda layer: False)(modules[name]):
            return kind.__name__
    return ""
