"""What a format of other libraries has to say and do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from superlora_cli.opening.shapes_only import Stored


@dataclass(frozen=True)
class Options:
    """How to write.

    Attributes:
        rank, energy: limits of a LoRA, see `adapter.lowrank.approximate`; None in other formats.
        force: overwrite the output.
    """

    rank: int | None = None
    energy: float | None = None
    force: bool = False


class Format:
    """A format of another library.

    Attributes:
        description: what it is, in a few words.
        lora: it holds an update as a product of two factors, of a rank that can be limited.
        folder: it is a folder, not a file.
        merged: it is the base's weights with ΔW added, which merging writes.
    """

    description: ClassVar[str]
    lora: ClassVar[bool] = False
    folder: ClassVar[bool] = False
    merged: ClassVar[bool] = False

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        """Write what an adapter changes, whole or not at all.

        Args:
            adapter: that has a ΔW, and nothing beside it but a head.

        Returns:
            bytes, and `load`, the Python that loads it; of a LoRA also adapter_bytes, weights (name, rank and error of
            each) and error (of all).

        Raises:
            UsageError: the format cannot hold it. RunError: ΔW is not finite.
        """
        raise NotImplementedError
