"""How files of other programs name the modules of a pipeline: as diffusers does, or as the original checkpoint.

A weight of an original checkpoint may stack those of several modules, as FLUX's `qkv` does with `to_q`, `to_k` and
`to_v`; then it is a list of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from superlora_cli.models.targets import weights_of

EMPTY: Mapping[str, Any] = {}


class Rows(NamedTuple):
    """Rows `start`..`stop` of the weight of a module."""

    module: str
    start: int
    stop: int


class Naming:
    """The names of a family's modules in other programs' files.

    Attributes:
        prefix: of the keys that are written: `transformer.` or, with underscores for dots, `lora_unet_`.
        program: what trainers call the base in `ss_base_model_version`, so that tools show and sort by it; or empty.
        architecture: the same for `modelspec.architecture`.

    Args:
        originals: name in the original checkpoint → names in diffusers. `*` stands for a number, `{q,k,v}` for several
            modules, whose weights are stacked in this order, `[0]` and `[1]` for the halves of a weight.
        encoders: text encoder → the prefixes of its keys that trainers write, the one that is written here first.
    """

    def __init__(
        self,
        prefix: str,
        program: str = "",
        architecture: str = "",
        originals: Mapping[str, str] = EMPTY,
        encoders: Mapping[str, tuple[str, ...]] = EMPTY,
    ) -> None:
        self.prefix, self.program, self.architecture = prefix, program, architecture
        self._originals, self.encoders = originals, encoders

    @cached_property
    def _rules(self) -> list[tuple[str, list[str]]]:
        return [(name, list(_alternatives(own))) for name, own in self._originals.items()]

    def version(self, denoiser: Any) -> tuple[str, str]:
        """`program` and `architecture` of one of several sizes."""
        return self.program, self.architecture

    def keys(self, denoiser: nn.Module) -> dict[str, str]:
        """Module → the key that is written for it."""
        return {module: spelt(self.prefix, module) for module in weighted(denoiser)}

    def prefixes(self, encoder: str) -> tuple[str, ...]:
        """The prefixes of a text encoder's keys: those that trainers write, and diffusers' own."""
        return tuple(dict.fromkeys([*self.encoders.get(encoder, ()), f"{encoder}."]))

    def originals(self, denoiser: nn.Module) -> dict[str, list[Rows]]:
        """Name in the original checkpoint → the rows that its weight stacks, for all modules with a weight."""
        sizes = weighted(denoiser)
        found: dict[str, list[Rows]] = {}
        for name, owns in self._rules:
            first = re.compile(re.escape(owns[0].partition("[")[0]).replace(r"\*", r"(\d+)"))
            for module in sizes:
                if match := first.fullmatch(module):
                    parts = [_rows(_numbered(own, match.groups()), sizes) for own in owns]
                    if all(parts):
                        found[_numbered(name, match.groups())] = [part for part in parts if part]
        return found


def spelt(prefix: str, name: str) -> str:
    """The key for a name, with underscores for dots unless the prefix ends with one.

    >>> spelt("lora_unet_", "mid_block.attentions.0.proj_in"), spelt("transformer.", "norm_out.linear")
    ('lora_unet_mid_block_attentions_0_proj_in', 'transformer.norm_out.linear')
    """
    return prefix + (name if prefix.endswith(".") else name.replace(".", "_"))


def factors(key: str) -> tuple[str, str]:
    """What follows a key where LoRA's factors (r, in) and (out, r) are written.

    diffusers tells the format of a text encoder's keys by its layers, and errs for some; this one it always knows.

    >>> factors("lora_te_text_model_encoder_layers_0_mlp_fc1")
    ('lora_down.weight', 'lora_up.weight')
    """
    if "." not in key:
        return "lora_down.weight", "lora_up.weight"
    if is_text(key):
        return "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"
    return "lora_A.weight", "lora_B.weight"


def is_text(key: str) -> bool:
    """Whether a key begins with the name of a text encoder in its pipeline."""
    return key.startswith("text_encoder")


def in_files(encoder: nn.Module, name: str) -> str:
    """The name of a text encoder's module in files: in version 5, transformers has left out a part of CLIP's."""
    left_out = type(encoder).__name__ == "CLIPTextModel" and not hasattr(encoder, "text_model")
    return f"text_model.{name}" if left_out else name


def weighted(model: nn.Module) -> dict[str, int]:
    """Rows of the weight of every linear and convolutional module, by name."""
    return {name: weight.shape[0] for name, weight in weights_of(model).items()}


def _alternatives(pattern: str) -> Iterable[str]:
    """
    >>> list(_alternatives("attn.to_{q,k}")), list(_alternatives("proj"))
    (['attn.to_q', 'attn.to_k'], ['proj'])
    """
    before, brace, rest = pattern.partition("{")
    inside, _, after = rest.partition("}")
    return [before + part + after for part in inside.split(",")] if brace else [pattern]


def _numbered(pattern: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern


def _rows(name: str, sizes: Mapping[str, int]) -> Rows | None:
    module, half, which = name.partition("[")
    if module not in sizes:
        return None
    whole = Rows(module, 0, sizes[module])
    return halves(whole)[int(which.removesuffix("]"))] if half else whole


def halves(rows: Rows) -> tuple[Rows, Rows]:
    """
    >>> halves(Rows("norm_out.linear", 0, 8))
    (Rows(module='norm_out.linear', start=0, stop=4), Rows(module='norm_out.linear', start=4, stop=8))
    """
    middle = (rows.start + rows.stop) // 2
    return rows._replace(stop=middle), rows._replace(start=middle)
