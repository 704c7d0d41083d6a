"""Write the update of an adapter file in another library's format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from superlora_cli.adapter.lowrank import check_limits
from superlora_cli.commands.image_difference import check_images, image_difference
from superlora_cli.commands.merge import check_scale, merge
from superlora_cli.errors import UsageError
from superlora_cli.files import check_output
from superlora_cli.formats.format import Options, nothing
from superlora_cli.formats.known import FORMATS
from superlora_cli.models.targets import part_named, parts_beside
from superlora_cli.opening.results import resolve_result
from superlora_cli.opening.shapes_only import Stored, check_update, read_adapter


def export(
    path: Path,
    out: Path,
    *,
    to: str,
    rank: int | None = None,
    energy: float | None = None,
    scale: float = 1.0,
    force: bool = False,
    images: int | None = None,
    prompt: str | None = None,
    tell: Callable[[int], None] = nothing,
) -> dict[str, Any]:
    """Write an adapter, from a run folder or a file, in the format `to`.

    Args:
        to: a name in `FORMATS`, e.g. a merged file for timm, a folder for PEFT, a file for ComfyUI, or ΔW itself.
        rank, energy: limits of the LoRA formats, see `adapter.lowrank.approximate`.
        scale: a number that ΔW is multiplied by; not the head.
        force: overwrite `out`.
        images: this many images are generated with the adapter and with the file, and compared.
        prompt: of these images, see `image_difference`.
        tell: called with the number of bytes before they are written.

    Returns:
        output, to and load; bytes, except for timm; for the LoRA formats also adapter_bytes, weights (name, rank and
        error of each, and its form where there are several) and error (of all together); notes on what could not be
        checked, if any; `images` as asked for.

    Raises:
        UsageError: the format is unknown, the output exists, the format is exact but limits are given, the other
            library does not know the base, or the adapter is more than a ΔW and a head. RunError: ΔW is not finite.
    """
    form = FORMATS.named(to, where="--to")
    check_options(to, rank, energy)
    check_scale(scale)
    path = resolve_result(path)
    if form.merged:
        return {"to": to, **merge(path, out, scale=scale, force=force)}
    check_place(to, out, force=force)
    adapter = read_adapter(path)
    check_update(adapter, hint="--to timm writes all of it")
    check_parts(to, adapter)
    adapter.adapter.strength = scale
    if images is not None:
        check_images(adapter.base, images, to, exact=not form.lora)
    done = {"to": to, "output": str(out), **form.write(adapter, out, Options(rank, energy, force, tell))}
    return done if images is None else {**done, "images": image_difference(adapter, out, num=images, prompt=prompt)}


def check_parts(to: str, adapter: Stored) -> None:
    """Refuse a format without a place for a text encoder that is adapted.

    Raises:
        UsageError: names it.
    """
    beside = parts_beside(adapter.base.model)
    adapted = {part_named(target.module, beside) for target in adapter.targets}
    held = FORMATS[to].encoders(adapter.base) if beside else ()
    if lost := [name for name in beside if name in adapted and name not in held]:
        message = f"{' and '.join(lost)} is adapted as well, which the file has no place for"
        raise UsageError(message, where="--to", hint="superlora merge writes the whole pipeline")


def check_options(to: str, rank: int | None, energy: float | None) -> None:
    """Refuse invalid limits, and limits of a format that is exact.

    Raises:
        UsageError: names the option.
    """
    check_limits(rank, energy)
    for option, value in (("--rank", rank), ("--energy", energy)):
        if value is not None and not FORMATS[to].lora:
            raise UsageError(f"{to} is exact and takes no limit", where=option, hint="leave it out, or --to peft-lora")


def check_place(to: str, out: Path, *, force: bool) -> None:
    """Refuse early an output that exists, or a file where the format is a folder.

    Raises:
        UsageError: as described.
    """
    check_output(out, force=force)
    folder = FORMATS[to].folder
    if out.exists() and out.is_dir() != folder:
        raise UsageError(f"{to} is {'a folder' if folder else 'a file'}", where=str(out), hint="choose another --out")
