"""Finds the adapter or model file of a run."""

from __future__ import annotations

from pathlib import Path

from superlora_cli.errors import UsageError
from superlora_cli.kinds import Kind, check_kind
from superlora_cli.opening.hub import local
from superlora_cli.weights.foreign import IMPORT, recognise_folder

ADAPTER_FILE, MODEL_FILE = "adapter.safetensors", "model.safetensors"
WANTED = "a run or an adapter"


def resolve_result(path: Path) -> Path:
    """The adapter or model file at `path`: the file itself, the one in a run folder, or one on the hub (`hf-hub:`).

    Raises:
        UsageError: there is none.
    """
    path = local(path)
    if path.is_dir():
        for name in (ADAPTER_FILE, MODEL_FILE):
            if (path / name).is_file():
                return path / name
        foreign = recognise_folder(path)
        if foreign:
            raise UsageError(f"{foreign}, not a superlora adapter", where=str(path), hint=IMPORT)
        check_kind(path, WANTED, (Kind.RUN, Kind.FOLDER))
        unfinished = (path / "recipe.yaml").exists()
        hint = "the run is not finished: resume it" if unfinished else "give a run folder or an adapter file"
        raise UsageError(f"holds no {ADAPTER_FILE}", where=str(path), hint=hint)
    if not path.is_file():
        raise UsageError("no such run or adapter", where=str(path), hint="give a run folder or an adapter file")
    check_kind(path, WANTED, (Kind.ADAPTER, Kind.MODEL, Kind.WEIGHTS), f"a run folder or an {ADAPTER_FILE}")
    return path
