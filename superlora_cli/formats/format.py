"""The interface of a file format of another library."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from superlora_cli.files import write_atomic

if TYPE_CHECKING:
    from superlora_cli.opening.shapes_only import Stored


def nothing(size: int) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Options:
    """How to write a file.

    Attributes:
        rank, energy: limits of a LoRA, see `adapter.lowrank.approximate`; None in other formats.
        force: overwrite the output.
        tell: called with the number of bytes before they are written.
    """

    rank: int | None = None
    energy: float | None = None
    force: bool = False
    tell: Callable[[int], None] = nothing

    def put(self, out: Path, content: bytes) -> None:
        """Tell the size of a file, then write it atomically."""
        self.tell(len(content))
        write_atomic(out, content, force=self.force)


class Format:
    """A format of another library.

    Attributes:
        description: what it is, in a few words.
        lora: whether it can hold updates as products of two factors, whose rank can be limited.
        forms: whether it holds other forms too, and so is exact without limits.
        folder: whether it is a folder rather than a file.
        head: whether it holds a trained head.
        merged: whether it is the base's weights plus ΔW, as merging writes them.
        products: whether it holds only adapters that multiply the base.
    """

    description: ClassVar[str]
    lora: ClassVar[bool] = False
    forms: ClassVar[bool] = False
    folder: ClassVar[bool] = False
    head: ClassVar[bool] = False
    merged: ClassVar[bool] = False
    products: ClassVar[bool] = False

    def encoders(self, base: Any) -> Collection[str]:
        """The text encoders of a pipeline, a `PipelineBase`, that it has a place for."""
        return ()

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        """Write the update of an adapter, atomically.

        Args:
            adapter: an adapter with a ΔW, and possibly a head, but nothing else.

        Returns:
            bytes, and `load`, how it is loaded, in Python if possible; where `lora`, also adapter_bytes, weights (name,
            rank and error of each; where `forms`, its form) and error (of all together). `notes`, if anything about it
            could not be checked.

        Raises:
            UsageError: the format cannot hold it. RunError: ΔW is not finite.
        """
        raise NotImplementedError
