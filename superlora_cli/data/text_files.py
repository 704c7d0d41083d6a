"""Texts from files: JSON lines, a JSON list, CSV, parquet, or plain text; text files may be compressed by gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.utils import natural_key

from superlora_cli.data.folder import image_names, some
from superlora_cli.data.hub import read_hub_texts
from superlora_cli.data.images import is_own
from superlora_cli.data.source import Unreadable, three_parts
from superlora_cli.data.text_rows import UnfitError, check_columns
from superlora_cli.data.texts import Texts, TextSource, read_rows, told
from superlora_cli.errors import UsageError

TABLES, PLAIN, PACKED = (".jsonl", ".json", ".csv", ".tsv", ".parquet"), (".txt", ".md"), ".gz"
SUFFIXES = (*TABLES, *PLAIN)
SAVED = ("dataset_dict.json", "state.json")  # in a folder written by `save_to_disk` of the library `datasets`
DELIMITERS = ",;\t|"
Rows = Iterator[tuple[str, Any]]


def read_text_files(path: Path, columns: Mapping[str, str] | None) -> TextSource:
    """The texts of a file, or of a folder.

    In a folder, files or sub-folders that are called `train`, `validation` or `test` are its parts; without a part
    `train`, all other files together are the training texts. Plain text beside tables, such as a README, is none of
    them; a part `test` may be alone. Of a table, every row is a text; a file of plain text is one, but if it is all
    there is, its paragraphs are. A folder may also be a data set written by `save_to_disk`.

    Raises:
        UsageError: there are no texts, or a file cannot be read.
    """
    if _is_saved(path):
        return read_hub_texts(str(path), columns, config=None, download=False)
    check_columns(columns)
    if not (path.is_file() or path.is_dir()):
        hint = f"a file that ends in {', '.join(SUFFIXES)} (or one of these and {PACKED}), or a folder of such files"
        raise UsageError("no such file", where=f"data.name={path}", hint=hint)
    parts: tuple[list[Path] | None, ...] = ([path], None, None)
    left: tuple[str, ...] = ()
    if path.is_dir():
        parts, left = _parts(path)
    bad: list[Unreadable] = []
    found = [None if files is None else _read(files, columns, bad) for files in parts]
    tested = not parts[0] and bool(parts[2])  # to evaluate with, there need not be more
    total = len(bad) + sum(len(texts) for texts in found if texts is not None)
    for texts, name in zip(found, ("train", "validation", "test"), strict=True):
        if texts is not None and not len(texts) and not (tested and name == "train"):
            cause = f": {bad[-1].cause}" if bad else ""
            where = bad[-1].path if bad else str(path)
            hint = "columns text, prompt and completion, or messages; or name them in data.columns"
            raise UsageError(f"no text of the {name} part can be used{cause}", where=where, hint=hint)
    train, validation, test = found
    assert train is not None
    return TextSource(train, validation, test, tuple(bad), (*left, *told(bad, total)))


def holds_texts(path: Path) -> bool:
    """Whether a path is a file of texts, or a folder of such and of no images."""
    if path.is_file():
        return suffix_of(path) in SUFFIXES
    return _is_saved(path) or (bool(_files(path)) and not image_names(path))


def suffix_of(path: Path) -> str:
    """How a file's name ends, in lower case and without `.gz`.

    >>> suffix_of(Path("a.JSONL")), suffix_of(Path("a.jsonl.gz"))
    ('.jsonl', '.jsonl')
    """
    return _unpacked(path).suffix.lower()


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() == PACKED else path


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED)


def _files(folder: Path) -> list[Path]:
    """The files of a folder that may hold texts, in order."""
    found = (path for path in folder.rglob("*") if suffix_of(path) in SUFFIXES and path.is_file())
    own = [path for path in found if is_own(path.relative_to(folder))]
    return sorted(own, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _parts(folder: Path) -> tuple[tuple[list[Path] | None, ...], tuple[str, ...]]:
    """The files of the three parts of a folder, and notes on those that are of none."""
    parts: tuple[list[Path] | None, ...] = three_parts(lambda names: _called(folder, names) or None)
    used = {file for part in parts for file in part or ()}
    others = [file for file in _files(folder) if file not in used]
    if parts[0] is None:
        parts = (_tables_if_any(others), *parts[1:])
        used.update(parts[0] or ())
        others = [file for file in others if file not in used]
    plain = [file for file in others if suffix_of(file) in PLAIN and any(map(_is_table, used))]
    notes = []
    for files, why in (
        (plain, "plain text beside tables"),
        ([file for file in others if file not in plain], "not called like a part, such as train-2"),
    ):
        if files:
            names = some([file.relative_to(folder).as_posix() for file in files])
            notes.append(f"left out {len(files):,} {'files' if files[1:] else 'file'} ({why}): {names}")
    return parts, tuple(notes)


def _is_table(file: Path) -> bool:
    return suffix_of(file) in TABLES


def _tables_if_any(files: list[Path]) -> list[Path]:
    """Files of texts without what is plain text beside tables."""
    return list(filter(_is_table, files)) or files


def _called(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files that are called, or in a sub-folder that is called, like one of the names."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name in names:
            found += _tables_if_any(_files(path))
        elif (
            path.is_file() and suffix_of(path) in SUFFIXES and _unpacked(path).stem.partition("-")[0] in names
        ):  # train-00000-of-00002
            found.append(path)
    return found


def _read(files: Sequence[Path], columns: Mapping[str, str] | None, bad: list[Unreadable]) -> Texts:
    def rows() -> Rows:
        for file in files:
            yield from _rows(file, alone=len(files) == 1)

    return read_rows(rows(), columns, bad)


def _rows(file: Path, *, alone: bool) -> Rows:
    """(Place, row) of a file."""
    suffix = suffix_of(file)
    try:
        if suffix == ".parquet":
            yield from _parquet(file)
            return
        with gzip.open(file) if file.suffix.lower() == PACKED else file.open("rb") as stream:
            content = io.TextIOWrapper(stream, encoding="utf-8-sig").read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"cannot be unpacked: {error}", where=str(file), hint="copy it again") from None
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8", where=str(file), hint="convert it to UTF-8") from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(file)) from None
    if suffix == ".jsonl":
        yield from _json_lines(file, content)
    elif suffix == ".json":
        yield from _json(file, content)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(file, content, "\t" if suffix == ".tsv" else _delimiter(content))
    else:
        pieces = [piece.strip() for piece in content.split("\n\n")] if alone else [content]
        yield from ((f"{file}: text {number}", {"text": piece}) for number, piece in enumerate(pieces, 1) if piece)


def _json_lines(file: Path, content: str) -> Rows:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"{file}:{number}", UnfitError("not JSON")


def _json(file: Path, content: str) -> Rows:
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        if _is_object(content.lstrip().partition("\n")[0]):  # JSON lines by another name
            yield from _json_lines(file, content)
            return
        hint = "a list of objects, or an object in every line"
        raise UsageError(f"cannot be read: {error}", where=str(file), hint=hint) from None
    if not isinstance(rows, list):
        lists = [name for name, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        hint = f"write the list '{lists[0]}' in it to a file of its own" if lists else "[{…}, {…}]"
        raise UsageError("holds no list of texts, but one value", where=str(file), hint=hint)
    yield from ((f"{file}: row {number}", row) for number, row in enumerate(rows, 1))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _delimiter(content: str) -> str:
    """What separates the columns of a table's header."""
    try:
        return csv.Sniffer().sniff(content.partition("\n")[0].strip(), DELIMITERS).delimiter
    except csv.Error:  # a single column
        return ","


def _csv(file: Path, content: str, delimiter: str) -> Rows:
    try:
        rows = _table(file, content, delimiter=delimiter)
    except UsageError:
        if delimiter != "\t":
            raise
        rows = _table(file, content, delimiter=delimiter, quoting=csv.QUOTE_NONE)  # there, a quote may be no more
    yield from ((f"{file}: row {number}", row) for number, row in enumerate(rows, 1))


def _table(file: Path, content: str, **form: Any) -> list[dict[str, Any]]:
    """The rows of a table by the names in its header, of cells of any length."""
    limit = csv.field_size_limit(max(len(content), csv.field_size_limit()))  # of all readers: set back below
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True, **form)
    rows: list[dict[str, Any]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        hint = 'a CSV file with a header; a quote in a cell that is in quotes is ""'
        raise UsageError(f"cannot be read: {error}", where=f"{file}: row {len(rows) + 1}", hint=hint) from None
    finally:
        csv.field_size_limit(limit)
    names = Counter(reader.fieldnames or ())
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise UsageError(f"has several columns '{twice}'", where=str(file), hint="rename all but one")
    return [{name: value for name, value in row.items() if name is not None} for row in rows]


def _parquet(file: Path) -> Rows:
    try:
        from pyarrow import parquet
    except ImportError:
        hint = "pip install 'superlora-cli[datasets]'"
        raise UsageError("parquet needs the library pyarrow", where=str(file), hint=hint) from None
    try:
        rows = parquet.read_table(file).to_pylist()
    except Exception as error:  # of a damaged file, pyarrow raises several kinds
        cause = str(error).partition("\n")[0]
        raise UsageError(f"cannot be read: {cause}", where=str(file), hint="copy it again") from None
    yield from ((f"{file}: row {number}", row) for number, row in enumerate(rows, 1))
