"""YAML for recipes: plain data with YAML 1.2's scalars, and the position of each key.

PyYAML composes the nodes; their meaning is decided here, because PyYAML implements YAML 1.1, where `off` is false,
`1:30` is 90, `010` is 8 and `1e-4` is text. One list of scalar forms, `SCALARS`, is used for reading and writing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from superlora_cli.errors import UsageError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000  # after aliases are expanded
MAX_DEPTH = 64

TAG = "tag:yaml.org,2002:"
SCALARS = {  # YAML 1.2's core schema, decimal integers only, and the merge key
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"[-+]?[0-9]+\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    "merge": re.compile(r"<<\Z"),
}

Locate = Callable[[int, int], str]  # (line, column), both from 1, to the `where` of an error


@dataclass(frozen=True)
class Document:
    """The data of a YAML text, and the (line, column) of each key by dotted path (`data.name`, `adapter.targets.0`)."""

    data: Any
    positions: dict[str, tuple[int, int]]


def read_yaml(path: str | Path) -> Document:
    """The YAML file at `path`, whose top level must be a mapping.

    Raises:
        UsageError: the file is missing, a folder, larger than 1 MB, not UTF-8, not YAML, not a mapping, or expands to
            more than 10,000 nodes.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UsageError("is a folder, not a recipe", where=str(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be read: {reason}", where=str(path)) from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"is larger than {MAX_BYTES:,} bytes", where=str(path), hint="a recipe is a page of YAML")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8 text (byte {error.start})", where=str(path)) from None
    document = parse_yaml(text, lambda line, column: f"{path}:{line}:{column}")
    if not isinstance(document.data, dict):
        got = "nothing" if document.data is None else _short(repr(document.data))
        raise UsageError(f"expected keys such as `model:` and `train:`, got {got}", where=str(path))
    return document


def parse_yaml(text: str, locate: Locate = lambda line, column: f"{line}:{column}") -> Document:
    """Parse the single document in `text`; `locate` turns a position into an error's `where`.

    Numbers must be finite, keys must be text, tags such as `!!python/name` are refused, an empty text is None.

    Raises:
        UsageError: `text` is not such a document.

    >>> parse_yaml("lr: 1e-4\\ntargets: [q, off]").data
    {'lr': 0.0001, 'targets': ['q', 'off']}
    """
    try:
        root = _Loader(text).single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, locate) from None
    except yaml.reader.ReaderError as error:
        before, char = text[: error.position], ord(text[error.position])
        where = locate(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise UsageError(f"the character U+{char:04X} is not allowed in YAML", where=where) from None
    builder = _Builder(locate)
    return Document(None if root is None else builder.build(root, ()), builder.positions)


def dump_yaml(data: Any) -> str:
    """`data` as YAML that `parse_yaml` reads back unchanged; text that any version of YAML might misread is quoted.

    >>> print(dump_yaml({"lr": 1e-05, "precision": "off", "rank": [4, 4]}), end="")
    lr: 1.0e-05
    precision: 'off'
    rank: [4, 4]
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)


class _Loader(yaml.SafeLoader):
    """Composes nodes, tagged by `SCALARS`, up to a maximum number and depth."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # without those of YAML 1.1  # noqa: RUF012
    nodes = depth = 0

    def single_node(self) -> yaml.Node | None:
        try:
            return self.get_single_node()
        except (ValueError, OverflowError):  # raised by PyYAML's chr() of an escape and int() of a %YAML version
            problem = "an escape or a version is out of range"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark()) from None

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, _too_large(self.depth), self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        """Escape unprintable characters: PyYAML would write U+0085 unescaped and read it back as a space."""
        return self.represent_scalar(TAG + "str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.text)
for _kind, _pattern in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _kind, _pattern, None)


class _Builder:
    """Turns nodes into plain data; counts nodes after expanding aliases and records the position of each key."""

    def __init__(self, locate: Locate) -> None:
        self.locate = locate
        self.positions: dict[str, tuple[int, int]] = {}
        self.nodes = self.depth = 0

    def build(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            raise self.refuse(node, _too_large(self.depth))
        built: Any
        if isinstance(node, yaml.ScalarNode):
            built = self.scalar(node)
        elif isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            built = self.mapping(node, path)
        elif isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            built = self.sequence(node, path)
        else:
            raise self.refuse(node, f"the tag '{node.tag.replace(TAG, '!!')}' is not used in recipes")
        self.depth -= 1
        return built

    def sequence(self, node: yaml.SequenceNode, path: tuple[str, ...]) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            self.mark((*path, str(index)), item)
            result.append(self.build(item, (*path, str(index))))
        return result

    def mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for value in (value for key, value in node.value if key.tag == TAG + "merge"):
            # `<<: *base` or `<<: [*first, *second]`: keys written here take precedence, then those of the first
            for source in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if not isinstance(source, yaml.MappingNode):
                    raise self.refuse(value, "`<<` merges mappings only")
                result |= self.build(source, path)
        lines: dict[str, int] = {}
        for key_node, value in ((key, value) for key, value in node.value if key.tag != TAG + "merge"):
            key = self.key(key_node)
            if key in lines:
                raise self.refuse(key_node, f"duplicate key '{key}', first on line {lines[key]}")
            lines[key] = key_node.start_mark.line + 1
            self.mark((*path, key), key_node)
            result[key] = self.build(value, (*path, key))
        return result

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.refuse(node, "a key must be text, got a list or mapping")
        key = self.scalar(node)
        if not isinstance(key, str) or not key or not key.isprintable():
            raise self.refuse(node, f"a key must be text, got {_short(repr(key))}")
        return key

    def scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        kind, text = node.tag.removeprefix(TAG), node.value
        if kind in ("str", "merge"):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise self.refuse(node, "half of a surrogate pair is not text")
            return str(text)
        if kind not in SCALARS or not SCALARS[kind].match(text):
            raise self.refuse(node, f"the tag '{node.tag.replace(TAG, '!!')}' does not fit {_short(text)!r}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        number = text.lower().replace(".inf", "inf").replace(".nan", "nan")
        if not math.isfinite(float(number)):  # also an integer of 400 digits
            raise self.refuse(node, f"the number {_short(text)} is not finite")
        return int(number) if kind == "int" else float(number)

    def mark(self, path: tuple[str, ...], node: yaml.Node) -> None:
        self.positions[".".join(path)] = (node.start_mark.line + 1, node.start_mark.column + 1)

    def refuse(self, node: yaml.Node, message: str) -> UsageError:
        return UsageError(message, where=self.locate(node.start_mark.line + 1, node.start_mark.column + 1))


def _syntax_error(error: yaml.MarkedYAMLError, text: str, locate: Locate) -> UsageError:
    """PyYAML's error on one line, with a hint if a pattern of module names was not quoted."""
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    message = ", ".join(filter(None, (error.problem, error.context)))
    if message.startswith("but found another document"):
        message = "a second document begins here"
    elif error.context_mark and error.context_mark.line != mark.line:
        message += f" from line {error.context_mark.line + 1}"
    line, hint = dict(enumerate(text.split("\n"))).get(mark.line, ""), None
    if "alias" in message or "but got '['" in message or "but got '{'" in message:
        hint = f'quote patterns: "{_pattern_at(line, mark.column)}"'
    elif "mapping values" in message:
        hint = "quote text that contains ': '"
    elif r"'\t'" in message:
        hint = "indent with spaces"
    return UsageError(message.replace("\n", " "), where=locate(mark.line + 1, mark.column + 1), hint=hint)


def _pattern_at(line: str, column: int) -> str:
    """The word of `line` at `column`, including brackets: what was meant as one pattern."""
    for word in re.finditer(r"[^\s,\[\]{}\"']+(?:[\[{][^\[\]{}]*[\]}][^\s,\[\]{}\"']*)*", line):
        if word.start() <= column <= word.end() and word.group().isprintable():
            return word.group()
    return "blocks.*.attn.qkv[q]"


def _too_large(depth: int) -> str:
    if depth > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} deep"
    return f"expands to more than {MAX_NODES:,} nodes"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
