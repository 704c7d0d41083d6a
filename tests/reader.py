"""Reads adapter files as loaders of images do: written from their documented keys, with nothing of superlora.

| type | keys after the module's key |
|---|---|
| LoRA | `lora_up.weight`, `lora_down.weight`, `alpha`; or `lora_B.weight`, `lora_A.weight` |
| LoHa | `hada_w1_a`, `hada_w1_b`, `hada_w2_a`, `hada_w2_b` |
| LoKr | `lokr_w1` or `lokr_w1_a`, `lokr_w1_b`; `lokr_w2` or `lokr_w2_a`, `lokr_w2_b` |
| exact ΔW | `diff` |

Module keys: `lora_unet_` and the path with underscores, as diffusers or the original checkpoint of a U-Net has it;
`lycoris_` and diffusers' path with underscores; `transformer.` and diffusers' path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ENDINGS = re.compile(r"^(.*?)\.(alpha|diff|hada_w\w+|lokr_w\w+|lora_(?:up|down|A|B)\.weight)$")


def read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Module → ΔW, in the shape of its weight; KeyError if a key fits no module."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        match = ENDINGS.match(name)
        if match is None:
            raise KeyError(name)
        files.setdefault(match[1], {})[match[2]] = tensor
    modules = {key: name for name, _ in model.named_modules() for key in keys(name, model)}
    return {modules[key]: delta(parts, model.get_submodule(modules[key]).weight.shape) for key, parts in files.items()}  # type: ignore[union-attr]


def keys(name: str, model: Any) -> list[str]:
    """The keys by which a module is found."""
    found = [name, original(name, model.config["layers_per_block"])] if hasattr(model, "down_blocks") else [name]
    underscored = [path.replace(".", "_") for path in found]
    return [f"transformer.{name}", f"lycoris_{underscored[0]}", *(f"lora_unet_{path}" for path in underscored)]


def original(name: str, layers: int) -> str:
    """A U-Net's module in the original checkpoint, of those that are in a block."""
    kind, _, rest = name.partition(".")
    if kind == "mid_block":
        part, place, rest = [*rest.split(".", 2), "", ""][:3]
        return f"middle_block.{2 * int(place or 0) if part == 'resnets' else 1}.{inside(rest)}"
    if kind not in ("down_blocks", "up_blocks") or rest.count(".") < 3:
        return name
    block, part, place, rest = rest.split(".", 3)
    number = int(block) * (layers + 1) + int(place) + (kind == "down_blocks")
    return (
        f"{'input' if kind == 'down_blocks' else 'output'}_blocks.{number}.{int(part == 'attentions')}.{inside(rest)}"
    )


def inside(rest: str) -> str:
    names = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
    return names.get(rest, rest)


def delta(parts: dict[str, Tensor], shape: Any) -> Tensor:
    """The update of a weight of a shape."""
    alpha, scale = parts.get("alpha"), 1.0
    if "diff" in parts:
        return parts["diff"]
    down, up = (parts.get(f"lora_{word}.weight", parts.get(f"lora_{letter}.weight"))
                for word, letter in (("down", "A"), ("up", "B")))  # fmt: skip
    if down is not None and up is not None:
        whole, rank = up.flatten(1) @ down.flatten(1), len(down)
    elif "hada_w1_a" in parts:
        one, other = (parts[f"hada_w{k}_a"] @ parts[f"hada_w{k}_b"] for k in (1, 2))
        whole, rank = one * other, parts["hada_w1_b"].shape[0]
    else:
        ranks = [parts[f"lokr_w{k}_b"].shape[0] for k in (1, 2) if f"lokr_w{k}_b" in parts]
        left, right = (
            parts[f"lokr_w{k}"] if f"lokr_w{k}" in parts else parts[f"lokr_w{k}_a"] @ parts[f"lokr_w{k}_b"]
            for k in (1, 2)
        )
        whole, rank = torch.kron(left, right.flatten(1)), ranks[0] if ranks else None  # type: ignore[assignment]
    if alpha is not None and rank is not None:
        scale = alpha.item() / rank
    return (whole * scale).reshape(tuple(shape))
