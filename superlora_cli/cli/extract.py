"""`superlora extract`: two checkpoints in, an adapter fitted to their difference out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli import knobs
from superlora_cli.cli.console import loading, print_errors, print_json, print_pairs
from superlora_cli.errors import UsageError


@knobs.takes_knobs
def command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Recipe with the model, targets and adapter.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to override: adapter.rank=2")
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The fine-tuned weights: a safetensors file, or a folder of shards or of a pipeline.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The adapter file to write.")] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL|FILE", help="Name of the base model, or its weights; default: the recipe's model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Architecture of --base if that is a file, so that eval and merge can use it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the fixed projection.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="At most this many steps of fitting after the closed form.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    **options: Any,
) -> None:
    """Fit an adapter to the difference of two checkpoints.

    The adapter can be of any method; the error of every weight is reported.
    """
    if tuned is None or out is None:
        option, hint = (
            ("--tuned", "the fine-tuned weights") if tuned is None else ("--out", "the adapter file to write")
        )
        raise UsageError("is missing", where=option, hint=hint)
    targets = options.pop("targets")
    given = knobs.given(**options, seed=seed)
    patterns = None if targets is None else knobs.split_patterns(targets)

    from superlora_cli.recipe.load import load_recipe

    with loading():
        from superlora_cli.commands.extract import Wanted, extract

    loaded = None if recipe is None else load_recipe(recipe, overrides or [])
    flags = {
        **given,
        **({"targets": targets} if targets else {}),
        **({"model": base or model} if base or model else {}),
    }
    with knobs.located(flags, recipe):
        wanted = Wanted(tuned, base, model, patterns, given, loaded)
        done = extract(wanted, out, steps=steps, force=force)
    if as_json:
        print_json(done)
        return
    rows = [
        ("output", f"{done['output']}  {done['bytes']:,} bytes"),
        ("parameters", f"{done['params']['adapter']:,} adapter, {done['params']['head']:,} head"),
        ("closed form", f"relative error {done['start_error']:.2e}, then {done['steps']} fitting steps"),
    ]
    if done["elsewhere"]:
        names, count = done["elsewhere"], len(done["elsewhere"])
        rows.append(
            ("not in the adapter", f"{count} other changed tensors: {', '.join(names[:3])}{' …' * (count > 3)}")
        )
    print_pairs("extracted", rows)
    print_errors(done["weights"], done["error"], "a higher rank or another method may fit better")
