"""`superlora extract`: two checkpoints in, the adapter that leads from one to the other out."""

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
        str | None, typer.Argument(metavar="RECIPE", help="Recipe whose model, targets and adapter are meant.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change first.")
    ] = None,
    tuned: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The tuned weights: a safetensors file, or a folder of shards.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The adapter file to write.")] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL|FILE", help="A model's name, or its weights; default: the recipe's model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Architecture of --base where that is a file; eval and merge can use it then.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the fixed projection.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps of the fit behind the closed form at most; 0: none.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    **options: Any,
) -> None:
    """Fit an adapter to the difference of two checkpoints.

    An adapter of any variant; the error of every weight is told.
    """
    if tuned is None or out is None:
        option, hint = ("--tuned", "the tuned weights") if tuned is None else ("--out", "the adapter file to write")
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
        ("closed form", f"relative error {done['start_error']:.2e}, then {done['steps']} steps"),
    ]
    if done["elsewhere"]:
        names, count = done["elsewhere"], len(done["elsewhere"])
        rows.append(("not in the adapter", f"{count} more changed tensors: {', '.join(names[:3])}{' …' * (count > 3)}"))
    print_pairs("extracted", rows)
    print_errors(done["weights"], done["error"], "a higher rank or another method may come nearer")
