"""The name of a method from the adapter's knobs: the preset that they match, and the projection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from superlora_cli.adapter.activations import NONE
from superlora_cli.adapter.config import PRESETS, AdapterConfig
from superlora_cli.adapter.cores import CORES
from superlora_cli.errors import UsageError

# Preset → its name, and the knobs that may change without making it another method.
NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "fourierft": ("FourierFT", ("ratio",)),
    "shira": ("SHiRA", ("ratio",)),
    "atoms": ("filter atoms", ("groups", "rank")),
    "dense": ("dense", ()),
    "krona": ("KronA", ("split_dim", "terms")),
    "lora": ("LoRA", ("rank",)),
    "loha": ("LoHa", ("rank",)),
    "lokr": ("LoKr", ("rank", "split_dim", "left", "terms")),
    "lotr": ("LoTR", ("groups", "rank")),
    "lonkr": ("LoNKr", ("groups", "rank", "splits", "split_dim", "left", "terms")),
    "lorta": ("LoRTA {order}D", ("groups", "order", "rank")),
    "fact_tk": ("FacT-TK", ("groups", "rank")),
    "cara": ("CaRA", ("groups", "rank")),
    "unilora": ("Uni-LoRA", ("rank",)),
    "nola": ("NOLA", ("rank",)),
    "vblora": ("VB-LoRA", ("rank",)),
    "vera": ("VeRA", ("rank",)),
    "randlora": ("RandLoRA", ("rank", "terms")),
    "lora_xs": ("LoRA-XS", ("rank",)),
    "tinylora": ("TinyLoRA", ("rank",)),
    "hira": ("HiRA", ("rank",)),
    "loda": ("LoDA", ("rank", "activation")),
    "ia3": ("IA³", ()),
    "oft": ("OFT", ("block",)),
    "dora": ("DoRA", ("rank",)),
}
WHOLE = "whole model"  # a run without an adapter
PROBE = "head alone"
ALSO = {"bias": "biases", "norm": "norms"}


def method_name(config: AdapterConfig | None) -> str:
    """A name for these knobs; every combination has one.

    >>> method_name(AdapterConfig.from_knobs("lorta", order=4, rank=2, groups=3))
    'LoRTA 4D'
    >>> method_name(AdapterConfig(projection="linear_v2", ratio=0.1))
    '2D reshaped, linear_v2'
    >>> method_name(AdapterConfig(order=3, core="diagonal"))
    'CP 3D'
    >>> method_name(AdapterConfig.from_knobs("lora", inner={"projection": "dense"}, freeze=["A2"]))
    'LoRA, dense F_in, A2 frozen'
    >>> [method_name(AdapterConfig.from_knobs(name, also=["bias"])) for name in ("none", "lora")]
    ['BitFit', 'LoRA, biases']
    """
    if config is None:
        return WHOLE
    if not config.adapts:
        return {(): PROBE, ("bias",): "BitFit"}.get(config.also) or " and ".join(ALSO[kind] for kind in config.also)
    preset, name = _preset(config)
    parts = [name]
    if not preset:
        plain = replace(
            config, inner=None, freeze=(), frozen="random", diagonals=(), multiply="none", activation=NONE,
            terms=_terms(config),
        )  # fmt: skip
        parts = [_preset(plain)[1] or _described(config), *_trained(config)]
    if config.projects and "projection" not in PRESETS.get(preset, PRESETS["dense"]).knobs:
        parts.append(config.projection)
    bits = [f"{config.bits} bits"] if config.bits else []
    return ", ".join([*parts, *bits, *(ALSO[kind] for kind in config.also)])


def _preset(config: AdapterConfig) -> tuple[str, str]:
    """The preset that the knobs match, and its name; two empty strings where they match none."""
    found = ((key, name.format(order=config.order)) for key, (name, free) in NAMES.items() if _is(config, key, free))
    return next(found, ("", ""))


def _terms(config: AdapterConfig) -> int | Literal["full"]:
    """The terms of a Kronecker product; 1 elsewhere."""
    return config.terms if config.splits > 1 else 1


def _trained(config: AdapterConfig) -> list[str]:
    """In words, what is frozen or trained through something else."""
    words = [f"{config.inner.projection} F_in"] if config.inner else []
    if config.freeze:
        words.append(f"{' '.join(config.freeze)} {'from the base' if config.frozen == 'svd' else 'frozen'}")
    if config.diagonals:
        words.append("diagonals")
    if config.multiplies:
        words.append(f"times W ({config.multiply})")
    if config.activates:
        words.append(config.activation)
    return words + ([f"{config.terms} terms"] if config.terms != _terms(config) else [])


def _is(config: AdapterConfig, preset: str, free: tuple[str, ...]) -> bool:
    """Whether the knobs that shape the units are those of the preset, except for the free ones."""
    knobs = PRESETS[preset].knobs
    if ("splits" in knobs) != (config.splits > 1) or knobs.get("projection", config.projection) != config.projection:
        return False
    try:
        made = AdapterConfig.from_knobs(preset, **{knob: getattr(config, knob) for knob in free})
    except UsageError:
        return False
    return _shape(made) == _shape(config)


def _shape(config: AdapterConfig) -> tuple[Any, ...]:
    """The knobs that shape a unit, where the other knobs give them an effect."""
    kronecker = config.splits > 1 and config.combine == "kronecker"
    return (
        config.groups,
        config.order,
        config.order == 1 or (config.ranks, config.core_kind, config.fold),
        config.splits > 1 and (config.splits, config.combine),
        kronecker and (config.split_dim, config.left, config.terms),
        config.splits == 1 and config.terms,
        config.inner and (config.inner.projection, config.inner.per),
        (config.freeze, config.frozen, config.diagonals),
        (config.multiply, config.block),
        config.activation,
    )


def _described(config: AdapterConfig) -> str:
    """Knobs that match no preset: `2D reshaped`, `CP 3D`, `2D Kronecker of 3`."""
    name = f"{config.order}D"
    if config.order > 2 and CORES[config.core_kind].closed_form == "cp":
        name = f"CP {name}"
    elif config.order == 2 and config.fold == "regular":
        name += " reshaped"
    if config.order == 1:
        name = "dense"
    if config.splits > 1:
        name += f" {config.combine.capitalize()} of {config.splits}"
    return name
