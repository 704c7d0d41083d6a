"""Geometry of updates: the update of every run in a section, computed from its file, compared with that of one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from superlora_cli.adapter.store import digest_base
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.targets import expand
from superlora_cli.opening.build import Built, build_from_file
from superlora_cli.opening.results import resolve_result
from superlora_cli.reporting.geometry import Similarity, Spectrum, compare
from superlora_cli.reporting.nearness import Nearness
from superlora_cli.reporting.sections import Section


class Reference:
    """The run that others are compared with: spectra of its updates, and digests of the base weights.

    Raises:
        UsageError: it is not a run, or has no adapter. MismatchError: its base is not the one it was trained on.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, resolve_result(path)
        built = _adapted(self.file)
        self.subject = built.recipe.task, built.recipe.model.name, built.recipe.data.name
        self.spectra, self.digests = _spectra(built)
        model, patterns = built.model, built.recipe.adapter.patterns if built.recipe.adapter else ()
        self.kinds = {pattern: tuple(target.name for target in expand(model, [pattern])) for pattern in patterns}

    def compare(self, file: Path) -> dict[str, Similarity]:
        """The three measures of every weight that both adapt.

        Raises:
            MismatchError: the base weights differ, or no weight is adapted by both.
        """
        spectra, digests = _spectra(_adapted(file))
        common = [name for name in self.spectra if name in spectra]
        if not common:
            raise MismatchError(
                f"adapts none of the weights that {self.path} adapts", where=str(file), hint="use the same targets"
            )
        for name in common:
            if digests[name] != self.digests[name]:
                message = f"{name} of its base differs from that of {self.path}"
                raise MismatchError(message, where=str(file), hint="compare runs on the same base")
        return {name: compare(self.spectra[name], spectra[name]) for name in common}


def nearness(section: Section, reference: Reference, say: Callable[[str], None]) -> Nearness:
    """Compare all runs of a section that have a ΔW with the reference; `say` is called with each run's path."""
    found: dict[int, list[dict[str, Similarity]]] = {}
    for row in section.rows:
        adapted = [run for run in row.runs if run.config and run.config.adapts and not run.config.activates]
        runs = [run for run in adapted if not run.result.samefile(reference.file)]
        for run in runs:
            say(str(run.path))
            found.setdefault(row.number, []).append(reference.compare(run.result))
    shapes = {tuple(spectrum.delta.shape) for spectrum in reference.spectra.values()}
    (shape,) = shapes if len(shapes) == 1 else (None,)
    return Nearness(str(reference.path), reference.kinds, shape, found)  # type: ignore[arg-type]


def _adapted(file: Path) -> Built:
    built = build_from_file(file)
    if built.adapter is None or not built.adapter.targets:
        hint = "use a run with an adapter, such as method: dense"
        raise UsageError("has no adapter, so no update to compare", where=str(file), hint=hint)
    return built


def _spectra(built: Built) -> tuple[dict[str, Spectrum], dict[str, tuple[str, str]]]:
    """For every target, by name: the spectrum of its update, and a digest of the base weight."""
    assert built.adapter is not None
    targets: tuple[Target, ...] = built.adapter.targets
    with torch.no_grad():
        spectra = [Spectrum.of(delta) for delta in built.adapter.compute()]
    return (
        {target.name: spectrum for target, spectrum in zip(targets, spectra, strict=True)},
        {target.name: digest_base(built.model, [target]) for target in targets},
    )
