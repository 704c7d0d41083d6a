"""Hugging Face data sets (`hfds/NAME`): from a folder that `datasets` can read or saved, from its cache, or the hub.

`hfds/NAME@REVISION` is one commit of a data set (on the hub also a branch or tag). No code of a data set is run:
`datasets` has no scripts since version 4.

This uses the library directly rather than timm's reader, which cannot read what `save_to_disk` wrote and does not list
the splits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from superlora_cli.data.images import open_rgb
from superlora_cli.data.listed import SEEN, WHOLE
from superlora_cli.data.source import TRAIN, Pictures, Source, Unreadable, three_parts
from superlora_cli.data.text_rows import check_columns
from superlora_cli.data.texts import Texts, TextSource, read_rows, told
from superlora_cli.errors import UsageError
from superlora_cli.progress import shows_bars

TIMEOUT = 5  # seconds to wait for the hub's first answer


class HubImages(Pictures):
    """A split: the column of encoded images, and the classes."""

    def __init__(self, name: str, images: Any, labels: Sequence[int]) -> None:
        self.name, self.images, self._labels = name, images, labels
        (self.column,) = images.column_names

    def __len__(self) -> int:
        return len(self._labels)

    def picture(self, index: int) -> tuple[Image.Image, int]:
        found = self.images[index][self.column] or {"bytes": b"", "path": None}
        file = found["path"] if found["bytes"] is None else io.BytesIO(found["bytes"])
        return open_rgb(file, name=f"image {index} of {self.name}"), self._labels[index]

    @property
    def labels(self) -> Sequence[int]:
        return self._labels

    @cached_property
    def contents(self) -> Sequence[str]:
        return [self._content(row[self.column] or {"bytes": b"", "path": None}) for row in self.images]

    @staticmethod
    def _content(found: Mapping[str, Any]) -> str:
        content = Path(found["path"]).read_bytes() if found["bytes"] is None else found["bytes"]
        return hashlib.sha256(content).hexdigest()


def hub_classes(name: str, *, config: str | None, download: bool) -> tuple[str, ...]:
    """The names of the classes.

    Raises:
        UsageError: as `read_hub`.
    """
    return _classes(name, _open(name, config, download))[1]


def read_hub(name: str, *, config: str | None, download: bool, whole: bool = False) -> Source:
    """A data set whose splits have a column of images and one of classes.

    Args:
        name: name on the hub, optionally with `@REVISION`, or a folder.
        config: the configuration; None: the only one, or the default.
        download: download it if it is neither a folder nor in the cache.
        whole: train on all 1,000 images of a data set of VTAB-1k.

    Raises:
        UsageError: `datasets` is not installed, the data set is not available, or it lacks such columns or a training
            split.
    """
    datasets, splits = _library(), _open(name, config, download)
    label, names, values = _classes(name, splits)
    numbers = {value: number for number, value in enumerate(values)}
    image = next((key for key, kind in _features(splits).items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise UsageError(f"no column of images among {_list(_features(splits))}", where=name)
    digest, notes = hashlib.sha256(json.dumps(names).encode()), []
    parts: dict[str, HubImages] = {}
    for split, dataset in splits.items():
        found = dataset[label][:] if label in dataset.column_names else [None]
        if not numbers.keys() >= set(found):  # None or −1: test images whose classes are not published
            notes.append(f"{name}: split '{split}' has images without a class and is not used")
            continue
        images = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        labels = [numbers[value] for value in found]
        parts[split] = HubImages(f"{name}, {split}", images, labels)
        digest.update(json.dumps([split, labels]).encode())
    if whole and WHOLE in parts:
        parts[TRAIN[0]] = parts[WHOLE]
        notes.append(SEEN)
    train, validation, test = three_parts(lambda called: next((parts[n] for n in called if n in parts), None))
    if train is None:
        raise UsageError(f"no split 'train' among {_list(splits)}", where=name)
    return Source(train, validation, test, names, digest.hexdigest(), notes=tuple(notes))


def read_hub_texts(name: str, columns: Mapping[str, str] | None, *, config: str | None, download: bool) -> TextSource:
    """A data set of texts; arguments as for `read_hub`.

    Raises:
        UsageError: `datasets` is not installed, the data set is not available, or it has no training split or no texts.
    """
    check_columns(columns)
    bad: list[Unreadable] = []
    parts: dict[str, Texts] = {}
    for split, dataset in _open(name, config, download).items():
        rows = ((f"{name}, {split}: row {number}", row) for number, row in enumerate(dataset, 1))
        parts[split] = read_rows(rows, columns, bad)
    train, validation, test = three_parts(lambda called: next((parts[n] for n in called if parts.get(n)), None))
    if train is None:
        cause = f": {bad[0].cause}" if bad else f" among {_list(parts)}"
        hint = "columns text, prompt and completion, or messages; or name them in data.columns"
        raise UsageError(f"no split 'train' with texts{cause}", where=name, hint=hint)
    total = len(bad) + sum(map(len, parts.values()))
    return TextSource(train, validation, test, tuple(bad), told(bad, total))


def _library() -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        hint = "pip install 'superlora-cli[datasets]'"
        raise UsageError("Hugging Face data sets need the library `datasets`", where="data.name", hint=hint) from None
    return datasets


def _open(name: str, config: str | None, download: bool) -> dict[str, Any]:
    """The splits of a data set, by name."""
    datasets, path = _library(), Path(name)
    repository, _, revision = name.partition("@")
    with _quiet(datasets), _one_line(name):
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            if config is not None:
                raise UsageError("a data set saved by `save_to_disk` has no configurations", where="data.config")
            found = datasets.load_from_disk(name)
            return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
        if path.is_dir():
            return dict(datasets.load_dataset(name, config))
        try:
            from datasets.packaged_modules.cache.cache import Cache  # type: ignore[import-untyped]

            which = {"version": "auto", "hash": "auto", "config_name": config}
            if revision:
                which = {"version": "0.0.0", "hash": revision, "config_name": config or "default"}
            return dict(Cache(dataset_name=Path(repository).name, repo_id=repository, **which).as_dataset())
        except (ValueError, FileNotFoundError) as error:  # not in the cache, or more than one
            if "multiple" in str(error):
                raise
    if not download:
        hint = "give a folder, or set data.download=true (needs a network)"
        message = f"no folder '{name}', and no such Hugging Face data set in the cache"
        raise UsageError(message, where="data.name", hint=hint)
    with _quiet(datasets), _one_line(name):
        from huggingface_hub import HfApi

        pinned = revision or None
        HfApi().dataset_info(
            repository, revision=pinned, timeout=TIMEOUT
        )  # fails fast; `load_dataset` would retry for a long time
        return dict(datasets.load_dataset(repository, config, revision=pinned))


def _classes(name: str, splits: Mapping[str, Any]) -> tuple[str, tuple[str, ...], Sequence[Any]]:
    """The column of classes, their names, and the column's value for each class."""
    features = _features(splits)
    named = [key for key, kind in features.items() if isinstance(kind, _library().ClassLabel)]
    column = "label" if "label" in features else next(iter(named), None)
    if column is None:
        raise UsageError(f"no column 'label' among {_list(features)}", where=name)
    if column in named:
        names = features[column].names
        return column, tuple(names), range(len(names))
    train = three_parts(lambda called: next((splits[n] for n in called if n in splits), None))[0]
    values = sorted(set(train[column][:]) - {None}) if train is not None else []
    return column, tuple(map(str, values)), values


def _features(splits: Mapping[str, Any]) -> dict[str, Any]:
    return dict(next(iter(splits.values())).features)


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn any error of the library or the network into one line that says why the data set is not available."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if "onfig" in str(
            error
        ):  # "Config name is missing" or "BuilderConfig 'x' not found", both followed by the available ones
            cause = " ".join(str(error).partition("Example of")[0].split())
            raise UsageError(cause, where="data.config", hint="choose one: data.config=NAME") from None
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = "give a folder that holds it, or check the network"
        raise UsageError(f"cannot read data set 'hfds/{name}': {cause}", where="data", hint=hint) from None


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Show the library's progress bars on a terminal only, and none of its warnings."""
    shown, level = datasets.are_progress_bars_disabled(), datasets.utils.logging.get_verbosity()
    if not shows_bars():
        datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()
