"""Checkpoints: folders that are written atomically.

    checkpoints/step-000500/{adapter.safetensors, state.pt, COMPLETE}

A folder is filled under a temporary name, marked COMPLETE, and renamed. A folder without COMPLETE does not count.
COMPLETE has the step and, in the form of `sha256sum`, checksums of the other files: a checkpoint that has changed since
is skipped.
Of an older step whose pictures are in the run folder, only the adapter is left.
`state.pt` holds tensors and primitives only and is read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from superlora_cli.errors import CannotResumeError, UsageError, first_line
from superlora_cli.files import system_errors, write_atomic

COMPLETE = "COMPLETE"
STATE = "state.pt"
ADAPTER = "adapter.safetensors"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
    """Write `checkpoints/step-NNNNNN` with `state` and further `files`; replaces a checkpoint of the same step."""
    import torch

    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with system_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            contents = {**files, STATE: buffer.getvalue()}
            sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()]
            for name, content in {**contents, COMPLETE: "".join([f"{step}\n", *sums]).encode()}.items():
                write_atomic(temporary / name, content, force=True)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every complete checkpoint, oldest first."""
    found = []
    for path in folder.glob("step-*"):
        if re.fullmatch(r"step-\d+", path.name) and (path / COMPLETE).is_file():
            found.append((step_of(path), path))
    return sorted(found)


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name.

    >>> step_of(Path("run/checkpoints/step-000500"))
    500
    """
    return int(checkpoint.name.removeprefix("step-"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if all its files are as written.

    Old checkpoints without checksums cannot be checked and count as intact.
    """
    try:
        step, *sums = (path / COMPLETE).read_text().splitlines()
        if int(step) != step_of(path):
            return f"{COMPLETE} belongs to step {int(step)}"
        for line in sums:
            digest, name = line.split("  ")
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} has changed since it was written"
    except (OSError, ValueError) as error:
        return f"{COMPLETE} is wrong: {error}"
    return None


def prune(folder: Path, *, keep: int, protected: Collection[int], shown: Collection[int]) -> None:
    """Delete all checkpoints except the newest `keep` and those at `protected` steps, but for the adapters of the steps
    that were `shown`."""
    disposable = [(step, path) for step, path in complete_checkpoints(folder) if step not in protected]
    for step, path in disposable[:-keep]:
        (path / COMPLETE).unlink(missing_ok=True)
        if step in shown and (path / ADAPTER).is_file():
            (path / STATE).unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def load_state(path: Path) -> dict[str, Any]:
    """The `state.pt` of a checkpoint.

    Raises:
        UsageError: it cannot be read, perhaps for now. CannotResumeError: it is not the state of a training.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a broken or unsafe file
        cause = first_line(error)
        raise UsageError(f"unreadable: {cause}", where=str(path / STATE), hint=f"remove {path}") from None
    kinds = {"progress": dict, "random": list, "tensors": dict, "optimizer": dict}
    for name, kind in kinds.items():
        if not isinstance(state, dict) or not isinstance(state.get(name), kind):
            raise CannotResumeError(f"holds no {name}", where=str(path / STATE), hint=f"remove {path}")
    return state
