"""The picture of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from superlora_cli.analysis.pictures import save_picture


def draw(path: Path, curve: Sequence[tuple[float, float]], proposed: float) -> None:
    """Loss against rate, with the proposed rate marked; the format follows the suffix.

    Raises:
        UsageError: no such format, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
    axes.plot(*zip(*curve, strict=True), marker=".")
    axes.axvline(proposed, color="tab:red", linestyle="--", label=f"proposed: {proposed:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_picture(figure, path)
