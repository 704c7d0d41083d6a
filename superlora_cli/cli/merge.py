"""`superlora merge`: an adapter in, plain weights out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli.console import loaded_by, loading, print_json, print_pairs, stderr_console


def command(
    result: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder or an adapter file.")],
    out: Annotated[
        Path,
        typer.Option(help="The .safetensors file to write; a folder for shards, language models and pipelines."),
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="Weights to merge into: a file or a folder of shards; default: the recipe's model."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the base's.")] = None,
    scale: Annotated[float, typer.Option(metavar="S", help="Merge S times the update; not the head.")] = 1.0,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Check that merged and adapted model agree.")
    ] = True,
    unmerge: Annotated[bool, typer.Option("--unmerge", help="Subtract the update from a merged --base.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output file.")] = False,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Accept a base whose target weights differ.")
    ] = False,
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Write a quantised base (model.quantize) in plain 16 or 32 bits.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Merge an adapter into its base's weights.

    The result is for timm, transformers or diffusers, as its base is.
    """
    console = stderr_console()
    with loading():
        from superlora_cli.commands.merge import merge

    done = merge(
        result,
        out,
        console,
        base=base,
        dtype=dtype,
        scale=scale,
        verify=verify,
        unmerge=unmerge,
        force=force,
        allow_mismatch=allow_base_mismatch,
        dequantise=dequantise,
    )
    if as_json:
        print_json(done)
        return
    rows = [("output", done["output"]), ("tensors changed", f"{done['tensors_changed']:,}")]
    if "dequantised" in done:
        rows.append(("dequantised", done["dequantised"]))
    if unmerge:
        rows.append(("difference from the base", f"at most {done['rounding_bound']:.2e}, from rounding"))
    if done["verified"]:
        what = f"largest difference {done['compared']}"
        rows.append((what, f"{done['max_abs_error']:.2e} on {done['verified_on']}"))
    rows += loaded_by(done)
    print_pairs("unmerged" if unmerge else "merged", rows)
