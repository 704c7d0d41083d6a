"""`superlora export`: an adapter in, a file for another library out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from superlora_cli.cli.console import ENOUGH_ENERGY, loaded_by, loading, print_errors, print_json, print_pairs, writing
from superlora_cli.formats.known import FORMATS

KNOWN = ", ".join(f"{name} ({form.description})" for name, form in FORMATS.items())
NAMED = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "diff": "ΔW"}
FOLDERS = ", ".join(name for name, form in FORMATS.items() if form.folder)


def command(
    result: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run folder or an adapter file.")],
    to: Annotated[str, typer.Option(help=f"One of {KNOWN}.")],
    out: Annotated[Path, typer.Option(help=f"The .safetensors file to write; a folder for {FOLDERS}.")],
    rank: Annotated[
        int | None, typer.Option(help="Write LoRA, of at most this rank for each weight; default: what --energy needs.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Write LoRA that keeps this share of ‖ΔW‖²; default: all where the format has room, else 0.99."
        ),
    ] = None,
    scale: Annotated[float, typer.Option(metavar="S", help="Write S times the update; not the head.")] = 1.0,
    images: Annotated[
        int | None,
        typer.Option(metavar="N", help="For text to image: compare N images by the file with those by the adapter."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Prompt of these images; default: what all captions share.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Write an adapter in the format of another program.

    It is merged for timm, written as LoRA for PEFT and diffusers, in its own form (LoRA, LoHa, LoKr) or else as ΔW for
    LyCORIS and ComfyUI, or as the update itself.

    LoRA is exact where the update of each weight has low rank. Otherwise it is the nearest update of that rank, and
    the relative error of every weight is reported and stored.
    """
    with loading():
        from superlora_cli.commands.export import export

    done = export(
        result, out, to=to, rank=rank, energy=energy, scale=scale, force=force, images=images, prompt=prompt,
        tell=writing(out),
    )  # fmt: skip
    if as_json:
        print_json(done)
        return
    size = f"  {done['bytes']:,} bytes" if "bytes" in done else ""
    rows = [("output", done["output"] + size), *loaded_by(done)]
    if "weights" in done:
        rows[1:1] = [("the adapter", f"{done['adapter_bytes']:,} bytes"), *_forms(done)]
    if "images" in done:
        told = done["images"]
        rows.append((f"{told['num']} images", f"differ by {told['difference']:.2%} of the range, “{told['prompt']}”"))
    print_pairs(to, [*rows, *(("note", note) for note in done.get("notes", ()))])
    if "weights" in done:
        others = " or ".join(name for name, form in FORMATS.items() if not (form.lora or form.products))
        exact = "without a limit it" if FORMATS[to].forms else f"--to {others}"
        print_errors(done["weights"], done["error"], f"{ENOUGH_ENERGY} keeps it below 5 %, {exact} is exact")


def _forms(done: dict[str, Any]) -> list[tuple[str, str]]:
    """How the weights are written: a row for every form of a file with several, else one for LoRA."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in done["weights"]:
        found.setdefault(row.get("form", "lora"), []).append(row)
    rows = []
    for form, own in found.items():
        ranks = f"rank at most {max(row['rank'] for row in own)}" if all("rank" in row for row in own) else "full size"
        said = f"{len(own)} weights, {ranks}" if len(found) > 1 else ranks
        rows.append((f"as {NAMED[form]}", said))
    name, said = rows[0]
    return [(name, f"{said}, relative error {done['error']:.1%}"), *rows[1:]]
