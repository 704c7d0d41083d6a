"""Checkpoints: folders that exist whole or not at all.

    checkpoints/step-000500/{adapter.safetensors, state.pt, COMPLETE}

A folder is filled under a temporary name, marked COMPLETE, and renamed. One without COMPLETE does not exist.
`state.pt` holds tensors and primitives only and is read with `weights_only=True`.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from superlora_cli.errors import UsageError
from superlora_cli.files import system_errors, write_atomic

COMPLETE = "COMPLETE"
STATE = "state.pt"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], files: Mapping[str, bytes]) -> Path:
    """Write `checkpoints/step-NNNNNN` with `state` and further `files`; replaces one of the same step."""
    import torch

    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with system_errors(final):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for name, content in {**files, STATE: buffer.getvalue(), COMPLETE: f"{step}\n".encode()}.items():
                write_atomic(temporary / name, content)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every whole checkpoint, oldest first."""
    found = []
    for path in folder.glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match and (path / COMPLETE).is_file():
            found.append((int(match[1]), path))
    return sorted(found)


def prune(folder: Path, *, keep: int, protected: Collection[int]) -> None:
    """Delete all but the newest `keep` checkpoints and those at `protected` steps."""
    disposable = [(step, path) for step, path in complete_checkpoints(folder) if step not in protected]
    for _, path in disposable[:-keep]:
        (path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def load_state(path: Path) -> dict[str, Any]:
    """The `state.pt` of a checkpoint.

    Raises:
        UsageError: it cannot be read.
    """
    import torch

    try:
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a broken or unsafe file
        cause = str(error).splitlines()[0]
        raise UsageError(f"unreadable: {cause}", where=str(path / STATE), hint="resume from an older one") from None
    return state
