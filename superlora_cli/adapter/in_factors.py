"""Which knobs keep updates products of factors: (rows, r) by (r, columns), or a Kronecker product. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.adapter.cores import CORES

if TYPE_CHECKING:
    from superlora_cli.adapter.config import AdapterConfig


def why_not(config: AdapterConfig) -> str | None:
    """Why no update stays a product of factors, whatever the targets; None if it may."""
    if config.multiplies:
        return f"ΔW is a product with the base's weights (multiply: {config.multiply})"
    if config.projects:
        return f"projection {config.projection} mixes all elements"
    if config.order == 1:
        return "order 1 has no factors"
    if config.splits == 1 and config.terms != 1:
        return "a sum of several terms is not a single product of factors"
    if config.combine == "hadamard":
        return "an elementwise product is not a matrix product of its factors"
    if config.fold == "stack":
        return None if config.splits == 1 else "a stack with Kronecker splits is not one matrix product per weight"
    if config.fold in ("regular", "kernel"):
        return "a folded group does not keep the rows of its weights"
    if config.splits > 1 and (config.groups != "weight" or config.splits > 2):
        return "Kronecker factors need groups: weight and splits 2"
    return None


def why_not_activated(config: AdapterConfig) -> str | None:
    """Why there is no place for σ between two factors, whatever the targets; None if there may be."""
    if reason := why_not(config):
        return reason
    if config.splits > 1:
        return "a Kronecker product is not one pair of factors"
    if config.ranks[-1] == "full":
        return "the last mode has no factor"
    if config.execution == "materialised":
        return "execution materialised computes ΔW, and there is none"
    if config.has_levels:
        return f"ΔW is relative to its start with bits {config.bits}"
    if config.inner is not None and config.inner.per != "factor":
        return f"ΔW is relative to its start with inner.per {config.inner.per}"
    if _zeroed(config) in (f"A{config.order}", f"D{config.order}"):
        return "σ would start at zero, where it may have no gradient: train a factor before it"
    return None


def _zeroed(config: AdapterConfig) -> str:
    """The tensor of a unit that starts at zero, as `UnitShape.zeroed`."""
    planes = [f"A{m}" for m, rank in enumerate(config.ranks, 1) if rank != "full"]
    cores = ["core"] if CORES[config.core_kind].stored else []
    trained = [part for part in planes if not config.freezes(1, part)] + [f"D{m}" for m in config.diagonals] + cores
    return trained[0] if trained else ""
