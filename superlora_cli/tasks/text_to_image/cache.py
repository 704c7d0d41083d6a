"""Latents of images and conditions of prompts on the disk: computed once for a pipeline, content and size.

$XDG_CACHE_HOME/superlora/latents/PIPELINE/CONTENT.safetensors, a file each, whole or not at all. PIPELINE is a digest
of the files that the result depends on and of the libraries' versions. A file that is damaged, or has another's name,
counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.files import system_errors, write_atomic
from superlora_cli.user_cache import make_room, mark_used, user_cache
from superlora_cli.weights import checksum
from superlora_cli.weights.small import read_safetensors, safetensors_bytes

VERSION = "3"  # of what is stored
PLAIN, NAME = "plain", "name"  # keys of the metadata: of values that are not tensors, and of the file's own name
DEFAULT_OPTIONS: Mapping[str, Any] = {}
HELD = 2**30  # bytes of tensors that are held in memory
ROOM = 32 * 2**30  # bytes of files; the least recently used are removed
SPARED = 7 * 24 * 3600  # seconds since its last use after which a file may be removed: no run still needs it


class Cache:
    """Nested dicts and lists of tensors and plain values by a key, for one pipeline.

    Args:
        folder: the pipeline.
        without: its part that the results do not depend on, the denoiser.
        options: with which it is loaded, such as the dtype.

    Raises:
        UsageError: there is no place for it.
    """

    def __init__(self, folder: Path, without: str, options: Mapping[str, Any] = DEFAULT_OPTIONS) -> None:
        caches = user_cache()
        if caches is None:
            raise UsageError("there is no home, so no place for latents", where="HOME", hint="set XDG_CACHE_HOME")
        self.path = caches / "latents" / fingerprint(folder, without, options)[:32]
        self._held: dict[str, dict[str, Any]] = {}
        self._bytes = 0

    def file(self, key: str) -> Path:
        """The file for a key."""
        return self.path / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is an intact file for a key; its content is then held, as far as memory allows."""
        return self._read(key) is not None

    def get(self, key: str) -> dict[str, Any]:
        """What was stored under a key.

        Raises:
            UsageError: its file has gone, or was damaged, since `has` found it.
        """
        found = self._read(key)
        if found is None:
            raise UsageError("is missing or damaged", where=str(self.file(key)), hint="start again: --resume auto")
        return found

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store a value."""
        tensors, plain = _flat(value)
        metadata = {PLAIN: json.dumps(plain, sort_keys=True), NAME: self.file(key).stem}
        with system_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        content = safetensors_bytes(tensors, checksum.with_checksum(tensors, metadata))
        write_atomic(self.file(key), content, force=True)

    def make_room(self) -> None:
        """Remove what was not used for long, of all pipelines, as far as there is more than `ROOM`."""
        make_room(self.path.parent, ROOM, spared=SPARED)

    def _read(self, key: str) -> dict[str, Any] | None:
        if key in self._held:
            return self._held[key]
        file = self.file(key)
        try:
            tensors, metadata = read_safetensors(file)
            checksum.check(tensors, metadata, file)
            found = _nested(tensors, json.loads(metadata[PLAIN]))
            if metadata[NAME] != file.stem:
                return None
        except (UsageError, KeyError, ValueError):
            return None
        mark_used(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes + size <= HELD:
            self._held[key] = found
            self._bytes += size
        return found


def fingerprint(folder: Path, without: str, options: Mapping[str, Any]) -> str:
    """A digest of a pipeline's files by name, size and time of change (or address, in the hub's cache), but for those
    of one part."""
    import diffusers
    import transformers

    versions = f"{VERSION} {diffusers.__version__} {transformers.__version__}"
    digest = hashlib.sha256(f"{versions} {sorted(map(str, options.items()))}".encode())
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or name.parts[0] in (without, "scheduler") or name.parts[0].startswith("."):
            continue
        state = file.stat()
        seen = file.resolve().name if file.is_symlink() else f"{state.st_size} {state.st_mtime_ns}"
        digest.update(f"{name.as_posix()}\0{seen}\0".encode())
    return digest.hexdigest()


def _flat(value: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain values of nested dicts, by dotted names; an empty dict is a plain value, and so is a
    list without tensors. A list with some is a dict whose keys are `#0`, `#1`, ..."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, list) and any(isinstance(one, Tensor) for one in part):
            part = {f"#{index}": one for index, one in enumerate(part)}
        if isinstance(part, Mapping) and part:
            inner = _flat(part, f"{prefix}{name}.")
            tensors |= inner[0]
            plain |= inner[1]
        elif isinstance(part, Tensor):
            tensors[prefix + name] = part.detach().cpu()
        else:
            plain[prefix + name] = part
    return tensors, plain


def _nested(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flat`.

    >>> _nested({"a.b": 1, "d.#0": 2}, {"c": None})
    {'a': {'b': 1}, 'd': [2], 'c': None}
    """
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            *above, last = name.split(".")
            inner = found
            for key in above:
                inner = inner.setdefault(key, {})
            inner[last] = value
    return {name: _listed(value) for name, value in found.items()}


def _listed(value: Any) -> Any:
    """Nested dicts, those with the keys of a list as lists."""
    if not isinstance(value, dict):
        return value
    parts = {name: _listed(part) for name, part in value.items()}
    return [parts[f"#{index}"] for index in range(len(parts))] if "#0" in parts else parts
