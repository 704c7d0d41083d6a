"""The formats that `superlora export` writes, one object each; their modules are imported only when used.

A new format is one object: `FORMATS.add("toy", Toy())`.
"""

from __future__ import annotations

from collections.abc import Collection
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


class Kohya(Format):
    """Keys as kohya's scripts write them, or diffusers' names, by family: those that loaders of images know."""

    description = "a file for ComfyUI, A1111, Forge and kohya's scripts"
    lora = forms = True

    def encoders(self, base: Any) -> Collection[str]:
        return base.family.naming.encoders

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.keyed import write_kohya

        return write_kohya(adapter, out, options)


class Lycoris(Format):
    """LyCORIS's own keys."""

    description = "a file for LyCORIS"
    lora = forms = True

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.keyed import write_lycoris

        return write_lycoris(adapter, out, options)


class PeftLora(Format):
    """A LoRA for PEFT."""

    description = "a folder for PEFT"
    lora = folder = head = True

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.peft_lora import write

        return write(adapter, out, options)


class PeftIa3(Format):
    """Scales for PEFT."""

    description = "a folder for PEFT: IA³"
    folder = products = True

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.peft_products import write_ia3

        return write_ia3(adapter, out, options)


class PeftOft(Format):
    """Rotations for PEFT."""

    description = "a folder for PEFT: OFT"
    folder = products = True

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.peft_products import write_oft

        return write_oft(adapter, out, options)


class DiffusersLora(Format):
    """A LoRA for a model of diffusers."""

    description = "a file for diffusers"
    lora = True

    def encoders(self, base: Any) -> Collection[str]:
        return base.loras

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.diffusers_lora import write

        return write(adapter, out, options)


class Delta(Format):
    """The update itself."""

    description = "ΔW itself"

    def encoders(self, base: Any) -> Collection[str]:
        return base.encoders

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        from superlora_cli.formats.delta import write

        return write(adapter, out, options)


FORMATS: Table[Format] = Table(
    "format",
    {
        "timm": Timm(),
        "kohya": (kohya := Kohya()),
        "comfyui": kohya,
        "lycoris": Lycoris(),
        "peft-lora": PeftLora(),
        "peft-ia3": PeftIa3(),
        "peft-oft": PeftOft(),
        "diffusers-lora": DiffusersLora(),
        "delta": Delta(),
    },
)
