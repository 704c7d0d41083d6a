"""Write what an adapter file changes in the form of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from superlora_cli.adapter.lowrank import check_limits
from superlora_cli.commands.merge import merge
from superlora_cli.errors import UsageError
from superlora_cli.files import check_output
from superlora_cli.formats.format import Options
from superlora_cli.formats.known import FORMATS
from superlora_cli.opening.results import resolve_result
from superlora_cli.opening.shapes_only import check_update, read_adapter


def export(
    path: Path, out: Path, *, to: str, rank: int | None = None, energy: float | None = None, force: bool = False
) -> dict[str, Any]:
    """Write a run's or file's adapter as `to`.

    Args:
        to: a name in `FORMATS`: a merged file for timm, a folder for PEFT, a file for diffusers, or ΔW itself.
        rank, energy: limits of the LoRA formats, see `adapter.lowrank.approximate`.
        force: overwrite `out`.

    Returns:
        output, to and load; bytes but for timm; for the LoRA formats also adapter_bytes, weights (name, rank, error of
        each) and error (of all).

    Raises:
        UsageError: an unknown format, an output that exists, limits where there is nothing to limit, a base that the
            other library does not know, an adapter that is not a ΔW and a head. RunError: ΔW is not finite.
    """
    form = FORMATS.named(to, where="--to")
    check_limits(rank, energy)
    for option, value in (("--rank", rank), ("--energy", energy)):
        if value is not None and not form.lora:
            raise UsageError(f"{to} holds the update whole", where=option, hint="--to peft-lora")
    path = resolve_result(path)
    if form.merged:
        return {"to": to, **merge(path, out, force=force)}
    check_output(out, force=force)
    if out.exists() and out.is_dir() != form.folder:
        kind = "a folder" if form.folder else "a file"
        raise UsageError(f"{to} is {kind}", where=str(out), hint="choose another --out")
    adapter = read_adapter(path)
    check_update(adapter, hint="--to timm has all of it")
    return {"to": to, "output": str(out), **form.write(adapter, out, Options(rank, energy, force))}
