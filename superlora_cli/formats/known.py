"""The formats that `superlora export` writes, one object each; their modules are imported only when used.

A new format is one object: `FORMATS.add("toy", Toy())`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from superlora_cli.formats.format import Format, Options
from superlora_cli.table import Table

if TYPE_CHECKING:
    from superlora_cli.opening.shapes_only import Stored


class Timm(Format):
    """A timm checkpoint."""

    description = "merged weights"
    merged = True


class PeftLora(Format):
    """A LoRA for PEFT."""

    description = "a folder for PEFT"
    lora = folder = True

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.peft_lora import write

        return write(adapter, out, options)


class DiffusersLora(Format):
    """A LoRA for a U-Net of diffusers."""

    description = "a file for diffusers"
    lora = True

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.diffusers_lora import write

        return write(adapter, out, options)


class Delta(Format):
    """The update itself."""

    description = "ΔW itself"

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.delta import write

        return write(adapter, out, options)


FORMATS: Table[Format] = Table(
    "format", {"timm": Timm(), "peft-lora": PeftLora(), "diffusers-lora": DiffusersLora(), "delta": Delta()}
)
