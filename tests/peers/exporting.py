"""Adapters of every form on tiny pipelines of every family, exported, and loaded by other libraries.

The record of all of them fills the table in docs/exporting.md (`benchmarks/exports.py`); `tests/peers/test_exports.py`
repeats some.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lycoris
import peft
from safetensors.torch import load_file
from torch import Tensor, nn

from superlora_cli.models.families import FAMILIES
from tests import pipelines, reader
from tests.conftest import run_cli
from tests.makers import deltas_of, relative, write_adapter

VARIANTS: dict[str, tuple[str, ...]] = {
    "LoRA": ("method=lora", "rank=2"),
    "LoRA, convolutions too": ("method=lora", "rank=2", "targets=['re:.*(to_q|conv1|proj|proj_out)']"),
    "VeRA": ("method=vera", "rank=2"),
    "LoRA of 4 bits": ("method=lora", "rank=1", "bits=4"),
    "Uni-LoRA": ("method=unilora", "rank=1"),
    "LoHa": ("method=loha", "rank=2"),
    "LoKr": ("method=lokr", "split_dim=2", "rank=1"),
    "LoKr, cropped": ("method=lokr", "split_dim=3", "rank=1"),
    "KronA": ("method=krona", "split_dim=4", "rank=[full,full]"),
    "LoRTA": ("method=lorta", "rank=2"),
    "FourierFT": ("method=fourierft", "ratio=0.1", "rank=null"),
}  # the adapter's knobs
COLUMNS = (
    ("kohya", "reader"), ("kohya", "diffusers"), ("kohya", "LyCORIS"), ("lycoris", "reader"), ("lycoris", "LyCORIS"),
    ("diffusers-lora", "diffusers"), ("peft-lora", "PEFT"),
    ("kohya", "superlora"), ("peft-lora", "superlora"),
)  # format, loader  # fmt: skip
REASONS = {("kohya", "diffusers"): "LoRA only", ("kohya", "LyCORIS"): "other keys"}  # why a loader refuses a file
Deltas = dict[str, Tensor]


def adapter_of(variant: str, family: str, folder: Path, *more: str) -> Path:
    """An adapter with a scale other than 1, on a saved pipeline of a family."""
    saved = folder / family
    if not saved.exists():
        pipelines.saved(family, saved)
        (folder / f"{family}.yaml").write_text(
            f'task: text-to-image\nmodel: {{name: "diffusers:{saved}"}}\ndata: {{name: nowhere, image_size: 16}}\n'
            "adapter: {method: lora, rank: 2, targets: [q, v], alpha: 3, scaling: alpha}\n"
            "train: {steps: 1, batch_size: 1, optimizer: {lr: 0.001}}\n"
        )
    knobs = [f"adapter.{knob}" for knob in (*VARIANTS[variant], *more)]
    return write_adapter(folder / "adapter.safetensors", str(folder / f"{family}.yaml"), *knobs)


def cells(variant: str, family: str, folder: Path) -> dict[str, float | str]:
    """`FORMAT LOADER` → the relative error of what was loaded, or why nothing was."""
    adapter, found = adapter_of(variant, family, folder), {}
    wanted = {name.removesuffix(".weight"): tensor for name, tensor in load_file(export(adapter, "delta")).items()}
    for form in dict.fromkeys(form for form, _ in COLUMNS):
        out = export(adapter, form)
        for loader in (loader for own, loader in COLUMNS if own == form):
            pipeline = copy.deepcopy(pipelines.made(family))
            try:
                found[f"{form} {loader}"] = relative(LOADERS[loader](out, pipeline), wanted)
            except (ValueError, AssertionError):
                if (form, loader) not in REASONS:
                    raise
                found[f"{form} {loader}"] = REASONS[form, loader]
    return found


def export(adapter: Path, form: str) -> Path:
    """A file or folder beside the adapter."""
    out = adapter.with_name(form if form == "peft-lora" else f"{form}.safetensors")
    done = run_cli("export", adapter, "--to", form, "--out", out, "--force", "--json")
    assert done.code == 0, done.err
    return out


def denoiser_of(pipeline: Any) -> nn.Module:
    """The component that is adapted."""
    found: nn.Module = getattr(pipeline, FAMILIES[type(pipeline).__name__].denoiser)
    return found


def by_reader(file: Path, pipeline: Any) -> Deltas:
    return reader.read(file, denoiser_of(pipeline))


def by_diffusers(file: Path, pipeline: Any) -> Deltas:
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    return lora_layers(denoiser_of(pipeline))


def by_peft(folder: Path, pipeline: Any) -> Deltas:
    return lora_layers(peft.PeftModel.from_pretrained(denoiser_of(pipeline), str(folder)).base_model.model)


def lora_layers(model: nn.Module) -> Deltas:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    return {name: layer.get_delta_weight(*layer.active_adapters).detach() for name, layer in layers.items()}  # type: ignore[operator]


def by_lycoris(file: Path, pipeline: Any) -> Deltas:
    model, weights = denoiser_of(pipeline), load_file(file)
    prefix = "lycoris" if next(iter(weights)).startswith("lycoris_") else "lora_unet"
    with lycoris_with({"lora_prefix": prefix}):
        return lycoris_deltas(lycoris.create_lycoris_from_weights(1.0, "", model, weights)[0], model, prefix)


@contextmanager
def lycoris_with(preset: dict[str, Any]) -> Iterator[None]:
    """Inside, LyCORIS has these settings, which it keeps on a class."""
    kind = lycoris.LycorisNetwork
    names = ("LORA_PREFIX", "ENABLE_CONV", "TARGET_REPLACE_MODULE")
    before = {name: getattr(kind, name) for name in names}
    kind.apply_preset(preset)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(kind, name, value)


def lycoris_deltas(network: Any, model: nn.Module, prefix: str = "lycoris", *, trained: bool = False) -> Deltas:
    """As it is merged; or as it was `trained`: LyCORIS merges LoHa and LoKr by the square of their scale."""
    names, found = {f"{prefix}_{name.replace('.', '_')}": name for name, _ in model.named_modules()}, {}
    for one in network.loras:
        name = names[one.lora_name]
        merged = one.get_diff_weight(1.0, one.shape)[0].detach()
        found[name] = one.get_weight(one.shape).detach() if trained and hasattr(one, "get_weight") else merged
    return found


def by_superlora(file: Path, pipeline: Any) -> Deltas:
    out = file.with_name("imported.safetensors")
    model = f"diffusers:{file.with_name(type(pipeline).__name__.removesuffix('Pipeline'))}"
    done = run_cli("import", file, "--base", model, "--out", out, "--force")
    assert done.code == 0, done.err
    return deltas_of(out)


LOADERS: dict[str, Callable[[Path, Any], Deltas]] = {
    "reader": by_reader, "diffusers": by_diffusers, "PEFT": by_peft, "LyCORIS": by_lycoris,
    "superlora": by_superlora,
}  # fmt: skip
