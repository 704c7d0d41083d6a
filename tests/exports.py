"""Adapters of every form on tiny pipelines of every family, exported, and loaded by other libraries.

The record of all of them fills the table in docs/exporting.md (`benchmarks/exports.py`); `tests/peers/test_exports.py`
repeats some.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lycoris
import peft
from safetensors.torch import load_file
from torch import Tensor, nn

from superlora_cli.models.families import FAMILIES
from tests import pipelines, reader
from tests.conftest import run_cli
from tests.makers import relative, write_adapter

VARIANTS: dict[str, tuple[str, ...]] = {
    "LoRA": ("method=lora", "rank=2"),
    "LoRA, convolutions too": ("method=lora", "rank=2", "targets=['re:.*(to_q|conv1|proj|proj_out)']"),
    "VeRA": ("method=vera", "rank=2"),
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
)  # format, loader  # fmt: skip
Deltas = dict[str, Tensor]
EXACT = 1e-5


def adapter_of(variant: str, family: str, folder: Path) -> Path:
    """An adapter with a scale other than 1, on a saved pipeline of a family."""
    saved = folder / family
    if not saved.exists():
        pipelines.saved(family, saved)
        (folder / f"{family}.yaml").write_text(
            f'task: text-to-image\nmodel: {{name: "diffusers:{saved}"}}\ndata: {{name: nowhere, image_size: 16}}\n'
            "adapter: {method: lora, rank: 2, targets: [q, v], alpha: 3, scaling: alpha}\n"
            "train: {steps: 1, batch_size: 1}\n"
        )
    knobs = [f"adapter.{knob}" for knob in VARIANTS[variant]]
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
            except Exception as error:
                found[f"{form} {loader}"] = repr(error)[:150]
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
    usual = lycoris.LycorisNetwork.LORA_PREFIX
    lycoris.LycorisNetwork.apply_preset({"lora_prefix": prefix})
    try:
        network, _ = lycoris.create_lycoris_from_weights(1.0, "", model, weights)
    finally:
        lycoris.LycorisNetwork.apply_preset({"lora_prefix": usual})
    names, found = {f"{prefix}_{name.replace('.', '_')}": name for name, _ in model.named_modules()}, {}
    for one in network.loras:
        name = names[one.lora_name]
        found[name] = one.get_diff_weight(1.0, model.get_submodule(name).weight.shape)[0].detach()  # type: ignore[union-attr]
    return found


LOADERS: dict[str, Callable[[Path, Any], Deltas]] = {
    "reader": by_reader, "diffusers": by_diffusers, "PEFT": by_peft, "LyCORIS": by_lycoris,
}  # fmt: skip
