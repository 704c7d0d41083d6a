"""Adapter files of other programs: the update of every weight that they have one for.

Read are files of kohya's scripts, LyCORIS, PEFT and diffusers, by the names of their tensors: a module's key (see
`models.families.naming`) and one of `ENDINGS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.adapter.updates import Form, LowRank
from superlora_cli.errors import UsageError
from superlora_cli.files import read_json
from superlora_cli.formats.lycoris import form_of, sliced
from superlora_cli.formats.whole import weight_shape
from superlora_cli.kinds import ADAPTER_MARK, Kind, check_kind
from superlora_cli.models.base import Base
from superlora_cli.models.families.naming import Rows, in_files, spelt, weighted
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.models.targets import part_named
from superlora_cli.weights.foreign import PEFT_CONFIG, PEFT_PREFIX
from superlora_cli.weights.small import read_safetensors

CHANGED = ("pissa", "olora", "corda")  # starts of PEFT that take something out of the base
ENDINGS = re.compile(
    r"^(?P<key>.+?)(?:\.|(?=_lora\.))(?P<part>alpha|diff|diff_b|scalar|dora_scale|(?:hada|lokr|oft|boft|glora|ia3)_\w+"
    r"|_?lora(?:_linear_layer)?[._](?:up|down|mid|A|B|magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|vera_lambda_[bd](?:\.default)?)$"
)
PEFT_FILE = "adapter_model.safetensors"
SETTINGS = "lora_adapter_metadata"  # in the header of diffusers' files


@dataclass(frozen=True)
class ForeignFile:
    """An adapter file of another program.

    Attributes:
        parts: module's key → its tensors, by what follows the key.
        others: names of the tensors that have no such name.
        shared: tensors without a module of their own, by name: VeRA's projections.
        settings: of PEFT, by which ΔW is scaled; with a prefix that diffusers gives them.
    """

    path: Path
    parts: Mapping[str, Mapping[str, Tensor]]
    others: tuple[str, ...]
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The updates in a file, by module and rows, and the keys without a place, each with the reason."""

    forms: Mapping[Rows, Form]
    left_out: Mapping[str, str]


def read_foreign(path: Path) -> ForeignFile:
    """Read a safetensors file, or PEFT's folder.

    Raises:
        UsageError: it is something else (pickles are not read), damaged, or an adapter of superlora.
    """
    if path.is_dir():
        check_kind(path, "an adapter file", (Kind.PEFT,), "give a .safetensors file, or PEFT's folder")
        path = path / PEFT_FILE
    check_kind(path, "an adapter file", (Kind.WEIGHTS, Kind.ADAPTER), "give a .safetensors file")
    tensors, metadata = read_safetensors(path)
    if ADAPTER_MARK in metadata:
        raise UsageError(f"is {Kind.ADAPTER} already", where=str(path), hint="use it as it is")
    parts: dict[str, dict[str, Tensor]] = {}
    others, shared = [], {}
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UsageError(f"tensor {name} holds NaN or Inf", where=str(path), hint="copy it again")
        if match := ENDINGS.match(name):
            parts.setdefault(match["key"], {})[_usual(match["part"])] = tensor
        elif name.startswith(f"{PEFT_PREFIX.rpartition('.model.')[0]}.vera_"):
            shared[name.rpartition(".")[2]] = tensor
        else:
            others.append(name)
    settings = read_json(path.parent / PEFT_CONFIG) if path.name == PEFT_FILE else {}
    try:
        settings = settings or dict(json.loads(metadata.get(SETTINGS, "{}")))
    except (ValueError, TypeError):
        raise UsageError(f"damaged metadata: {SETTINGS}", where=str(path), hint="copy it again") from None
    if not settings and any(key.startswith(PEFT_PREFIX) for key in parts):
        message = f"its scale is in {PEFT_CONFIG}, which is missing or damaged"
        raise UsageError(message, where=str(path.parent), hint=f"give PEFT's folder, with {PEFT_FILE}")
    return ForeignFile(path, parts, tuple(others), shared, settings)


def _usual(part: str) -> str:
    """The name of a part in LyCORIS.

    >>> _usual("lora_B.default.weight"), _usual("_lora.down.weight"), _usual("vera_lambda_b"), _usual("lokr_w1")
    ('lora_up.weight', 'lora_down.weight', 'vera_lambda_b', 'lokr_w1')
    """
    if match := re.fullmatch(r"_?lora(?:_linear_layer)?[._](up|down|mid|A|B)(?:\.default)?\.weight", part):
        return f"lora_{ {'A': 'down', 'B': 'up'}.get(match[1], match[1]) }.weight"
    return part.removesuffix(".default")


def updates_of(file: ForeignFile, base: Base) -> Found:
    """The updates of a file that fit the weights of a base."""
    places, modules = keys_of(base), dict(base.model.named_modules())
    forms: dict[Rows, Form] = {}
    left_out = dict.fromkeys(file.others, "no name of an adapter's tensor")
    for key, parts in file.parts.items():
        rows = places.get(key)
        if rows is None:
            left_out[key] = "no such weight"
            continue
        if "diff_b" in parts:
            left_out[f"{key}.diff_b"] = "a bias"
            parts = {name: tensor for name, tensor in parts.items() if name != "diff_b"}
        height, shape = sum(one.stop - one.start for one in rows), weight_shape(modules[rows[0].module])
        try:
            form = _form(file, key, rows[0].module, parts, (height, *shape[1:]))
            if any(one in forms for one in rows):
                raise ValueError("another key has the same weight")
        except ValueError as error:
            left_out[key] = str(error)
            continue
        at = 0
        for one in rows:
            forms[one] = sliced(form, at, at + one.stop - one.start)
            at += one.stop - one.start
    return Found(forms, dict(sorted(left_out.items())))


def keys_of(base: Base) -> dict[str, list[Rows]]:
    """Every key by which files name weights of a base → the rows that it stands for."""
    found: dict[str, list[Rows]] = {}
    beside = base.encoders if isinstance(base, PipelineBase) else {}
    for module, size in weighted(base.model).items():
        if part_named(module, beside) is None:
            found |= {key: [Rows(module, 0, size)] for key in _spellings(module)}
    if isinstance(base, PipelineBase):
        naming = base.family.naming
        for name, rows in naming.originals(base.model).items():
            found |= {f"diffusion_model.{name}": rows, f"lora_unet_{name.replace('.', '_')}": rows, name: rows}
        for part, encoder in beside.items():
            for module, size in weighted(encoder).items():
                rows, names = [Rows(f"{part}.{module}", 0, size)], (module, in_files(encoder, module))
                found |= {spelt(prefix, name): rows for prefix in naming.prefixes(part) for name in names}
    return found


def include_encoders(base: Base, file: ForeignFile) -> None:
    """Load the text encoders of a pipeline that keys of a file are about.

    Raises:
        UsageError: one cannot be loaded.
    """
    if isinstance(base, PipelineBase) and base.component == base.family.denoiser:
        for name in base.family.encoders:
            prefixes = base.family.naming.prefixes(name)
            if name not in base.encoders and any(key.startswith(prefixes) for key in file.parts):
                base.set_beside(name)


def _spellings(module: str) -> Iterator[str]:
    underscored, older = module.replace(".", "_"), re.sub(r"\.to_(q|k|v|out)(?:\.0)?$", r".processor.to_\1", module)
    yield from (module, PEFT_PREFIX + module)
    for part in ("unet", "transformer", "diffusion_model"):
        yield from (f"{part}.{module}", f"{part}.{older}")
    yield from (f"{prefix}_{underscored}" for prefix in ("lycoris", "lora_unet", "lora_transformer"))


def _form(file: ForeignFile, key: str, module: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Form:
    if "vera_lambda_b" in parts:
        return _vera(file, parts, shape)
    component, _, inner = key.partition(".")
    mine = f"{component}."
    said = {name: value for name, value in file.settings.items() if name.startswith(mine) or "." not in name}
    settings = {name.removeprefix(mine): value for name, value in said.items()}
    if module.startswith(mine) and not key.startswith(PEFT_PREFIX):  # of a text encoder
        module = inner
    start = str(settings.get("init_lora_weights")).lower()
    if start.startswith(CHANGED):
        raise ValueError(f"belongs to a base that {start} has changed: convert it to LoRA with PEFT first")
    try:
        return form_of(parts, shape, _scale(settings, module) if settings else None)
    except (TypeError, ZeroDivisionError, re.error) as error:
        raise ValueError(f"damaged settings: {error}") from None


def _vera(file: ForeignFile, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> LowRank:
    """ΔW = diag(b) B diag(d) A: PEFT draws A and B from its own seed, so they are read from the file."""
    if not {"vera_A", "vera_B"} <= file.shared.keys():
        raise ValueError("VeRA without its projections: save it with save_projection=True")
    b, d = (parts[f"vera_lambda_{letter}"].float() for letter in "bd")
    left, right = file.shared["vera_B"][: shape[0]].float(), file.shared["vera_A"][:, : shape[1]].float()
    return LowRank(b[:, None] * left * d, right)


def _scale(settings: Mapping[str, Any], module: str) -> Callable[[int], float]:
    """alpha / r or alpha / √r of PEFT's settings, for a module."""

    def scale(rank: int) -> float:
        rank = _matching(settings.get("rank_pattern"), module, settings.get("r", rank))
        usual = settings.get("lora_alpha", settings.get("alpha", rank))
        alpha = _matching(settings.get("alpha_pattern"), module, usual)
        return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))

    return scale


def _matching(patterns: Mapping[str, float] | None, module: str, usual: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT reads them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual
