"""Targets: rows of a module's weight, and their shape as a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class TargetShape:
    """One weight (or slice of a fused weight) to adapt, as a matrix (rows, columns).

    A convolution's weight (out, in, kh, kw) counts as (out, in·kh·kw), with a `kernel` of kh·kw elements. `layer` names
    the block that contains it.
    """

    name: str
    rows: int
    columns: int
    layer: str = ""
    kernel: int = 1

    @property
    def elements(self) -> int:
        """rows · columns."""
        return self.rows * self.columns


class Target(NamedTuple):
    """Rows `start`..`stop` of one module's weight; `shape` is that of the slice, `whole` if it is all of the weight.

    `tied` are other modules that hold the same weight and get its ΔW too.
    """

    module: str
    start: int
    stop: int
    shape: tuple[int, ...]
    whole: bool
    tied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`blocks.0.attn.qkv[0:768]`, or just the module name if the whole weight is the target."""
        return self.module if self.whole else f"{self.module}[{self.start}:{self.stop}]"

    @property
    def flat(self) -> TargetShape:
        """The target as (rows, columns), with the name of its block.

        >>> Target("blocks.0.attn.qkv", 0, 768, (768, 768), False).flat
        TargetShape(name='blocks.0.attn.qkv[0:768]', rows=768, columns=768, layer='blocks.0', kernel=1)
        """
        columns, kernel = math.prod(self.shape[1:]), math.prod(self.shape[2:])
        return TargetShape(self.name, self.shape[0], columns, block_of(self.module), kernel)


def block_of(module: str) -> str:
    """The block that contains a module: its name up to the last number that is not its own.

    >>> block_of("layers.2.blocks.5.attn.qkv"), block_of("blocks.1.attn.to_out.0"), block_of("head")
    ('layers.2.blocks.5', 'blocks.1', 'head')
    """
    parts = module.split(".")
    if len(parts) > 1 and parts[-1].isdigit():
        parts = parts[:-2]
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else module
