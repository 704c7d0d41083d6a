"""Recognises adapters of other programs, and says what makes superlora adapters of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

PEFT_CONFIG, PEFT_PREFIX = "adapter_config.json", "base_model.model."
IMPORT = "convert it with superlora import"
LYCORIS = (".lokr_w", ".hada_w", ".oft_blocks", ".oft_diag", ".dyn_up", ".on_input", ".glora_")
DIFFUSERS = (".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.", "_lora.up.", "_lora.down.", ".lora_linear_layer.")


def recognise(names: Iterable[str], metadata: Mapping[str, str]) -> str | None:
    """What a safetensors file is if it is another program's adapter, else None; see `IMPORT` for what to do with it.

    >>> recognise(["lora_unet_mid_block_to_q.lora_down.weight"], {})
    'a Kohya LoRA file'
    >>> recognise(["blocks.0.attn.qkv.weight"], {}) is None
    True
    """
    names = list(names)
    if any(name.startswith(PEFT_PREFIX) for name in names):
        return "a PEFT adapter"
    module = metadata.get("ss_network_module", "")
    if "lycoris" in module or any(mark in name for name in names for mark in LYCORIS):
        return "a LyCORIS file"
    kohya = any(".lora_down." in name or name.startswith("lora_unet_") for name in names)
    if kohya or any(key.startswith("ss_network") for key in metadata):
        return "a Kohya LoRA file"
    if any(mark in name for name in names for mark in DIFFUSERS):
        return "a diffusers LoRA file"
    return None


def recognise_folder(folder: Path) -> str | None:
    """As `recognise`, for a folder.

    >>> recognise_folder(Path(".")) is None
    True
    """
    if (folder / PEFT_CONFIG).is_file():
        return recognise([PEFT_PREFIX], {})
    return None
