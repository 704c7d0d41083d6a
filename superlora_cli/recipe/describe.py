"""The schema in other forms: JSON Schema for editors, a table for the docs, phrases for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel

from superlora_cli.recipe.schema import recipe_model

Schema = dict[str, Any]


class Key(NamedTuple):
    """One row of the table of keys; `default` is "required" for a key without one, and "" if it may be unset."""

    key: str
    type: str
    default: str
    description: str


def json_schema(of: type[BaseModel] | None = None) -> Schema:
    """The JSON Schema (draft 2020-12) of a recipe, or of another kind of file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **(of or recipe_model()).model_json_schema()}


def keys_table(of: type[BaseModel] | None = None) -> list[Key]:
    """Every key by its dotted path, in the order of the schema; a section comes before its keys."""
    return list(_rows(_whole(of or recipe_model()), ""))


def markdown_table(of: type[BaseModel] | None = None) -> str:
    """The table of keys, as in the docs."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for row in keys_table(of):
        cells = (f"`{row.key}`", row.type, f"`{row.default}`" if row.default else "", row.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def schema_at(path: Sequence[str | int], of: type[BaseModel] | None = None) -> Schema:
    """The part of the JSON Schema for the value at `path`; {} if anything is allowed.

    >>> schema_at(["train", "batch_size"])["minimum"]
    1
    """
    node = _whole(of or recipe_model())
    for part in path:
        for form in _forms(node):
            if isinstance(part, int) and "items" in form:
                node = form["items"]
                break
            if part in form.get("properties", {}):
                node = form["properties"][part]
                break
            if isinstance(form.get("additionalProperties"), dict):
                node = form["additionalProperties"]
                break
        else:
            return {}
    return node


def choices(node: Schema) -> list[str]:
    """The words that `node` allows."""
    words = [word for form in _forms(node) for word in (*form.get("enum", ()), form.get("const"))]
    return [word for word in words if isinstance(word, str)]


def phrase(node: Schema) -> str:
    """What `node` allows, in words, without null.

    >>> phrase(schema_at(["adapter", "groups"]))
    "a whole number, 'weight', 'layer' or 'none'"
    >>> phrase(schema_at(["adapter", "rank"]))
    "a whole number or a list of (a whole number or 'full')"
    """
    words = [word for form in _forms(node) for word in _words(form)]
    return ", ".join(words[:-1]) + " or " + words[-1] if len(words) > 1 else "".join(words)


@cache
def _whole(of: type[BaseModel]) -> Schema:
    """The JSON Schema with all references replaced by their definitions."""
    schema = json_schema(of)
    definitions = schema.get("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            named = definitions[node["$ref"].rpartition("/")[2]]
            node = named | {key: value for key, value in node.items() if key != "$ref"}
        return {key: inlined(value) for key, value in node.items() if key != "$defs"}

    whole: Schema = inlined(schema)
    return whole


def _words(form: Schema) -> list[str]:
    if "enum" in form:
        return [repr(word) for word in form["enum"]]
    if "const" in form:
        return [repr(form["const"])]
    match form.get("type"):
        case "integer" | "number" as kind:
            bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
            limits = [f"{sign} {form[name]:,}".removesuffix(".0") for name, sign in bounds.items() if name in form]
            return [" ".join(["a whole number" if kind == "integer" else "a number", " and ".join(limits)]).strip()]
        case "boolean":
            return ["true or false"]
        case "string":
            return ["text"]
        case "array":
            inner = phrase(form["items"])
            plural = {"a whole number": "whole numbers", "a number": "numbers"}.get(inner, inner)
            some = "a non-empty list of" if form.get("minItems") else "a list of"
            return [f"{some} ({plural})" if " or " in plural else f"{some} {plural}"]
        case "object" if len(form.get("properties", ())) == 1:
            return ["{" + f"{next(iter(form['properties']))}: …" + "}"]
        case "object":
            return ["a section of keys"]
    return ["anything"]


def _forms(node: Schema) -> list[Schema]:
    """The alternatives of `node`, without null."""
    forms = [form for option in node["anyOf"] for form in _forms(option)] if "anyOf" in node else [node]
    return [form for form in forms if form.get("type") != "null"]


def _rows(node: Schema, prefix: str) -> Iterator[Key]:
    for form in _forms(node):
        for name, child in form.get("properties", {}).items():
            section = any(len(inner.get("properties", ())) > 1 for inner in _forms(child))
            if name in form.get("required", ()):
                default = "required"
            elif section or child.get("default") is None:
                default = ""
            else:
                default = _yaml(child["default"])
            description = child.get("description") or _forms(child)[0].get("description", "")
            yield Key(prefix + name, phrase(child), default, description)
            yield from _rows(child, f"{prefix}{name}.")


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)
