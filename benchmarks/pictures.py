"""Pictures of the documentation, whose bytes depend only on what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Point = tuple[float, float, str]  # x, y and its name
ROUNDS = 500  # a number of them, and no time, so that the same figures give the same picture
SCALE = 3  # how often a pixel of an image is repeated


def canvas(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, file: Path) -> None:
    """As SVG."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "superlora"
    figure.savefig(file, metadata={"Date": None})


def name_points(axes: Any, points: Sequence[Point], *, avoid: Sequence[tuple[float, float]] = (), **look: Any) -> None:
    """Write each name near its point, with a line to it where it had to move; a point may have no name.

    Names overlap neither each other nor a point. The axes are in their final state.

    Args:
        avoid: other points that no name may cover.
        look: of the text.
    """
    from adjustText import adjust_text

    named = [(x, y, axes.text(x, y, name, **look)) for x, y, name in points if name]
    others = [(x, y) for x, y, _ in points] + list(avoid)
    adjust_text(
        [text for _, _, text in named], [x for x, _ in others], [y for _, y in others], ax=axes, iter_lim=ROUNDS,
        target_x=[x for x, _, _ in named], target_y=[y for _, y, _ in named], expand=(1.2, 1.5), max_move=None,
        force_static=(0.3, 0.5),
        arrowprops={"arrowstyle": "-", "color": "#999", "lw": 0.5},
    )  # fmt: skip


def sheets(panels: Mapping[str, np.ndarray[Any, Any]], file: Path) -> None:
    """Images side by side, as PNG: title → (rows, images in a row, height, width, 3)."""
    import matplotlib as mpl

    mpl.rcParams["savefig.dpi"] = 110
    figure = canvas(13, 7.2)
    for panel, (title, images) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        rows, _, height, _, _ = images.shape
        sheet = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, -1, 3)
        panel.imshow(sheet.repeat(SCALE, 0).repeat(SCALE, 1), interpolation="nearest")
        panel.set_title(title, fontsize=11)
        panel.set_axis_off()
    figure.savefig(file, metadata={"Software": None}, bbox_inches="tight")
