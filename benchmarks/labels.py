"""Labels of points that overlap neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Point = tuple[float, float, str]  # x, y and its name
ROUNDS = 500  # a number of them, and no time, so that the same figures give the same picture


def name_points(axes: Any, points: Sequence[Point], *, avoid: Sequence[tuple[float, float]] = (), **look: Any) -> None:
    """Write each name near its point, with a line to it where it had to move; a point may have no name.

    The axes are in their final state.

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
