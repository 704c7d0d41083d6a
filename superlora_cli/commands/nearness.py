"""The geometry of a section's runs: the update of each, made from its file on its base, against that of one run."""

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
    """The run that others are compared with: spectra of its updates, digests of the weights they belong to.

    Raises:
        UsageError: it is no result, or has no adapter. MismatchError: its base is not the one it was trained on.
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
            MismatchError: the weights under the updates differ, or none is adapted by both.
        """
        spectra, digests = _spectra(_adapted(file))
        common = [name for name in self.spectra if name in spectra]
        if not common:
            raise MismatchError(f"adapts no weight that {self.path} adapts", where=str(file), hint="the same targets")
        for name in common:
            if digests[name] != self.digests[name]:
                message = f"{name} of its base is not that of {self.path}: updates of different weights"
                raise MismatchError(message, where=str(file), hint="compare runs of one base")
        return {name: compare(self.spectra[name], spectra[name]) for name in common}


def nearness(section: Section, reference: Reference, say: Callable[[str], None]) -> Nearness:
    """All adapted runs of a section but the reference itself, compared with it; `say` is told each run's path."""
    found: dict[int, list[dict[str, Similarity]]] = {}
    for row in section.rows:
        adapted = [run for run in row.runs if run.config is not None and run.config.adapts]
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
        hint = "a run with an adapter, such as method: dense"
        raise UsageError("has no adapter whose update could be compared", where=str(file), hint=hint)
    return built


def _spectra(built: Built) -> tuple[dict[str, Spectrum], dict[str, tuple[str, str]]]:
    """By the target's name: the spectrum of its update, and a digest of the base's weight."""
    assert built.adapter is not None
    targets: tuple[Target, ...] = built.adapter.targets
    with torch.no_grad():
        spectra = [Spectrum.of(delta) for delta in built.adapter.compute()]
    return (
        {target.name: spectrum for target, spectrum in zip(targets, spectra, strict=True)},
        {target.name: digest_base(built.model, [target]) for target in targets},
    )
