"""The paper's Fig. 2 for any model: parameters against rank for every order, and against the width of a weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from superlora_cli.adapter.config import AdapterConfig, Rank
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.analysis.pictures import columns, picture_kind, save_picture
from superlora_cli.errors import UsageError

ORDERS = (2, 3, 4, 5)
RANKS = range(1, 65)
WIDTHS = tuple(2**power for power in range(4, 14))


def curve(configs: Iterable[tuple[int, AdapterConfig]], targets: Sequence[TargetShape]) -> list[tuple[int, int]]:
    """(x, parameters) for every configuration that these targets allow."""
    points = []
    for x, config in configs:
        try:
            points.append((x, plan(config, targets).params))
        except UsageError:  # the rank is larger than a side
            continue
    return points


def against_rank(groups: int, order: int, core: str, targets: Sequence[TargetShape]) -> list[tuple[int, int]]:
    """(rank, parameters) for folded groups of one order."""
    return curve(((r, AdapterConfig(groups=groups, order=order, rank=r, core=core)) for r in RANKS), targets)


def against_width(order: int, rank: Rank, core: str) -> list[tuple[int, int]]:
    """(width, parameters) for one folded square weight."""
    points = []
    for width in WIDTHS:
        points += curve([(width, AdapterConfig(order=order, rank=rank, core=core))], [TargetShape("w", width, width)])
    return points


def draw(path: Path, targets: Sequence[TargetShape], *, groups: int, rank: int, core: str) -> None:
    """Draw both to `path`, as SVG, PDF or PNG by its suffix.

    Raises:
        UsageError: another suffix, or the folder cannot be written.
    """
    picture_kind(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for order in ORDERS:
        left.plot(*columns(against_rank(groups, order, core, targets)), label=f"order {order}")
        right.plot(*columns(against_width(order, rank, core)), label=f"order {order}")
    lora = ((r, AdapterConfig.from_knobs("lora", rank=r)) for r in RANKS)
    left.plot(*columns(curve(lora, targets)), "k--", label="LoRA, one per weight")
    elements = sum(target.elements for target in targets)
    left.axhline(elements, color="grey", linestyle=":", label="order 1 (dense)")
    right.plot(WIDTHS, [width**2 for width in WIDTHS], ":", color="grey", label="order 1 (dense)")
    left.set(xlabel="rank", yscale="log", title=f"{len(targets)} weights, {elements:,} elements, groups {groups}")
    right.set(xlabel="width of one square weight", xscale="log", yscale="log", title=f"rank {rank}")
    right.set_xscale("log", base=2)
    for panel in (left, right):
        panel.set_ylabel(f"parameters ({core} core)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    save_picture(figure, path)
