"""`superlora count-params`: what an adapter costs, where it comes from, and what a budget can buy."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.counting import Count, count
from superlora_cli.adapter.inner_config import on_top
from superlora_cli.adapter.presets import PRESETS
from superlora_cli.adapter.shapes import Plan
from superlora_cli.adapter.targets import TargetShape
from superlora_cli.analysis.breakdown import TensorRow, kinds, steps, tensor_rows, total_formula
from superlora_cli.analysis.filesize import stored_bytes
from superlora_cli.analysis.trained import trained_head
from superlora_cli.cli import knobs
from superlora_cli.cli.console import print_json, print_table
from superlora_cli.cli.knobs import located, split_patterns
from superlora_cli.errors import UsageError
from superlora_cli.models.catalogue import Base, find

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe

DEFAULT_MODEL = "vit_base_patch16_224"
DEFAULT_TARGETS = ("q", "v")
Shapes = Mapping[str, tuple[int, ...]]  # of tensors of the base, by name


@knobs.takes_knobs
def command(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Recipe whose adapter is counted.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to override: adapter.rank=2")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"Base model; default: the recipe's, else {DEFAULT_MODEL}.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every tensor and where its shape comes from.")
    ] = False,
    budget: Annotated[
        int | None, typer.Option(min=1, help="For every method, find the largest setting within this many parameters.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option("--bytes", min=1, help="The same for this many bytes of numbers, of --bits each (default 3)."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot parameters against rank and width (Fig. 2 of the paper) to this SVG file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **options: Any,
) -> None:
    """Count the parameters of an adapter, or plan for a budget.

    The default is an adapter of order 2 and rank 4, folded, on the query and value weights of ViT-base. Options or a
    recipe change that; options override the recipe.
    """
    targets = options.pop("targets")
    flags = knobs.given(**options)
    subject = _subject(recipe, overrides or [], model, targets, flags)
    if budget is not None and size is not None:
        raise UsageError("a budget of numbers and one of bytes", where="--bytes", hint="one of --budget and --bytes")
    if budget is not None or size is not None:
        _show_budget(subject, budget, size, flags, as_json=as_json)
        return
    with located(flags, recipe):
        chosen = dict(subject.knobs)
        counted = count(AdapterConfig.from_knobs(chosen.pop("method", None), **chosen), subject.targets)
        also = subject.base.also(counted.plan.config.also)
    if plot is not None:
        _draw(plot, counted)
    if as_json:
        print_json(_result(subject, counted, also) | ({"explain": _explanation(counted, also)} if explain else {}))
        return
    _show(subject, counted, also)
    if explain:
        _show_explanation(counted, also)


@dataclass(frozen=True)
class Subject:
    """What is counted: targets in a base, the knobs (including `method`), and the trained head.

    `head` has the shapes of the head's tensors by name: empty if no head is trained, None if its classes are unknown.
    """

    base: Base
    patterns: tuple[str, ...]
    targets: Sequence[TargetShape]
    knobs: Mapping[str, Any]
    recipe: Mapping[str, Any] | None
    head: Shapes | None

    @property
    def head_params(self) -> int | None:
        """Parameters of the trained head; None where the number of classes is unknown."""
        return None if self.head is None else sum(math.prod(shape) for shape in self.head.values())

    def stored_bytes(self, plan: Plan, also: Shapes | None = None) -> int:
        """Size of the adapter file in bytes, without a run's metrics."""
        return stored_bytes(
            plan, patterns=self.patterns, base=self.base.name, head=self.head, also=also, recipe=self.recipe
        )


def _subject(
    name: str | None, overrides: Sequence[str], model: str | None, targets: str | None, flags: Mapping[str, Any]
) -> Subject:
    patterns = tuple(split_patterns(targets)) if targets is not None else None
    if name is None:
        with located({"model": model, "targets": targets}, None):
            base = find(model or DEFAULT_MODEL)
            patterns = (patterns or DEFAULT_TARGETS) if _adapts(flags) else ()
            return Subject(base, patterns, base.targets(patterns), flags, None, {})
    from superlora_cli.recipe.load import is_override, load_recipe

    if is_override(name):
        raise UsageError("KEY=VALUE overrides a recipe, but no recipe is given", where=name,
                         hint="use an option such as --rank 2, or give RECIPE first")  # fmt: skip
    recipe = load_recipe(name, overrides)
    with located({key: value for key, value in (("model", model), ("targets", targets)) if value}, name):
        base = find(model) if model else find(recipe.model.name, recipe.model.kwargs)
        if recipe.adapter is None and not flags:
            raise UsageError(f"no adapter to count: the base's own {base.params:,} parameters are trained", where=name,
                             hint="choose an adapter with options such as --method lorta")  # fmt: skip
        section = {} if recipe.adapter is None else {"method": recipe.adapter.method, **recipe.adapter.knobs}
        patterns = patterns or (tuple(recipe.adapter.targets) if recipe.adapter else DEFAULT_TARGETS)
        wanted = on_top(section, flags)
        patterns = patterns if _adapts(wanted) else ()
        chosen = base.targets(patterns)
    return Subject(base, patterns, chosen, wanted, recipe.to_dict(), _head(recipe, base))


def _adapts(knobs: Mapping[str, Any]) -> bool:
    """Whether any weight is adapted. (Knobs that contradict each other are reported when they are counted.)"""
    preset = PRESETS.get(knobs.get("method") or "")
    return "none" not in (knobs.get("groups"), preset and preset.knobs.get("groups"))


def _head(recipe: Recipe, base: Base) -> Shapes | None:
    """Tensors of the head that the recipe trains."""
    head = trained_head(recipe, base)
    if head is None:
        notice = "the number of classes is unknown, so the new head is not counted: set data.num_classes"
        sys.stderr.write(f"{recipe.data.name}: {notice}\n")
    return head


def _result(subject: Subject, counted: Count, also: Shapes) -> dict[str, Any]:
    return {
        "adapter": counted.adapter + _numbers(also),
        **({"also": _numbers(also)} if also else {}),
        **({"entries": counted.entries} if counted.plan.config.inner else {}),
        "core": counted.core,
        "bytes": counted.plan.bytes,
        "head": subject.head_params,
        "base": subject.base.params,
        "targets": {"weights": counted.weights, "elements": counted.elements},
        "units": list(counted.units),
        "stored_bytes": subject.stored_bytes(counted.plan, also),
        "lora_same_rank": counted.lora_same_rank,
    }


def _numbers(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _rows(counted: Count, also: Shapes) -> list[TensorRow]:
    """Every trained tensor except the head's."""
    own = [TensorRow(name, shape, math.prod(shape), "of the base, trained directly") for name, shape in also.items()]
    return [*tensor_rows(counted.plan), *own]


def _explanation(counted: Count, also: Shapes) -> dict[str, Any]:
    return {"steps": list(steps(counted.plan)), "tensors": [row._asdict() for row in _rows(counted, also)]}


def _show(subject: Subject, counted: Count, also: Shapes) -> None:
    from rich.table import Table

    config, params = counted.plan.config, counted.adapter + _numbers(also)
    terms = [total_formula(counted.plan)] if config.adapts else []
    terms += [f"{_numbers(also):,} of the base ({' and '.join(config.also)})"] if also else []
    head = "unknown" if subject.head_params is None else f"{subject.head_params:,}"
    units = " + ".join(f"{n:,} of {'×'.join(f'{side:,}' for side in unit.sides)}" for n, unit in kinds(counted.plan))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    rows = {
        "parameters": f"[bold]{params:,}[/]" + (f" = {' + '.join(terms)}" if terms else ""),
        "of these in cores": f"{counted.core:,}",
        "numbers": f"of {config.bits or 32} bits, {counted.plan.bytes:,} bytes"
        + (f", {places:,} of them for their positions" if (places := counted.plan.position_bytes) else ""),
        "trained head": head,
        "base": f"{subject.base.name}, {subject.base.params:,} parameters: "
        f"the adapter has {100 * params / subject.base.params:.3g} % of that",
        "targets": f"{counted.weights} weights, {counted.elements:,} elements",
        "units": units,
        "LoRA, same rank": f"{counted.lora_same_rank:,} at rank {config.scale_rank}: "
        f"{counted.lora_same_rank / max(1, params):,.3g} times as many",
        "adapter file": f"{subject.stored_bytes(counted.plan, also):,} bytes",
    }
    if not config.adapts:
        for name in ("of these in cores", "numbers", "targets", "units", "LoRA, same rank"):
            del rows[name]
    for row in rows.items():
        table.add_row(*row)
    print_table(table)


def _show_explanation(counted: Count, also: Shapes) -> None:
    from rich.table import Table

    print()
    for step in steps(counted.plan):
        print(step)
    print()
    table = Table("tensor", "shape", "what it is", box=None, pad_edge=False, header_style="dim")
    table.add_column("parameters", justify="right")
    for row in _rows(counted, also):
        table.add_row(row.name, "×".join(map(str, row.shape)), row.what, f"{row.params:,}")
    table.add_row("sum", "", "", f"[bold]{counted.adapter + _numbers(also):,}[/]")
    print_table(table)


def _show_budget(
    subject: Subject, budget: int | None, size: int | None, flags: Mapping[str, Any], *, as_json: bool
) -> None:
    from superlora_cli.analysis import budget as plans
    from superlora_cli.analysis.recommended import BITS, recommended, recommended_of_bits

    with located(flags, None):
        if size is not None:
            found = plans.offers(subject.targets, size, {"bits": BITS, **flags}, size=plans.number_bytes)
            best = None if {*flags} - {"bits"} else recommended_of_bits(subject.targets, size, flags.get("bits", BITS))
        else:
            assert budget is not None
            found = plans.offers(subject.targets, budget, flags)
            best = None if flags else recommended(subject.targets, budget)
    rows = [
        {
            "name": offer.family,
            "flags": offer.flags,
            "adapter": offer.plan.params,
            "bytes": offer.plan.bytes,
            "sides": [unit.sides for _, unit in kinds(offer.plan)],
            "rank": offer.plan.config.scale_rank,
            "stored_bytes": subject.stored_bytes(offer.plan),
        }
        for offer in found
    ]
    if as_json:
        asked = {"budget": budget} if size is None else {"bytes": size}
        print_json({**asked, "offers": rows, "recommended": best and best.as_dict()})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("parameters", "bytes", "file bytes", "rank"):
        table.add_column(heading, justify="right")
    for heading in ("method", "units", "options"):
        table.add_column(heading)
    for offer, row in zip(found, rows, strict=True):
        units = [f"{n} of {'×'.join(map(str, unit.sides))}" for n, unit in kinds(offer.plan)]
        numbers = [f"{row[key]:,}" for key in ("adapter", "bytes", "stored_bytes", "rank")]
        table.add_row(*numbers, offer.family, " + ".join([*units[:2], "…"][: len(units)]), offer.flags)
    print_table(table)
    if best is not None:
        print(f"\nrecommended, with {best.offer.plan.params:,} parameters: {best.adapter}")
        print(best.why)


def _draw(path: Path, counted: Count) -> None:
    if not counted.plan.config.adapts:
        raise UsageError("no weight is adapted, so there is nothing to plot", where="--plot",
                         hint="choose a method with factors")  # fmt: skip
    from superlora_cli.analysis.fig2 import draw

    config = counted.plan.config
    groups = config.groups if isinstance(config.groups, int) else 1
    draw(path, counted.plan.targets, groups=groups, rank=config.scale_rank, core=config.core or "diagonal")
    sys.stderr.write(f"wrote {path}\n")
