"""The metadata in the header of an adapter file: strings only, equal for equal adapters. Does not need torch.

From format 3 on it leaves out what can be derived: knobs, target patterns and base name that are also in the recipe,
and recipe values equal to those of `standard`; hashes are in base 64.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.standard import completed, differences
from superlora_cli.errors import UsageError
from superlora_cli.files import canonical
from superlora_cli.kinds import ADAPTER_MARK, CHECKSUM

FORMAT_VERSIONS = ("1", "2", "3", "4")  # 2: no factors, or `also` tensors; 4: knobs that format 3 does not know
GENERATOR = "numpy.RandomState/sha256"  # of `prng`
SLIM = ("3", "4")  # from packed numbers of a few bits on
CONFIG, TARGETS, BASE, RECIPE, METRICS, ORIGIN, CLASSES, SHAPES = (
    f"superlora.{name}" for name in ("config", "targets", "base", "recipe", "metrics", "origin", "classes", "shapes")
)


@dataclass(frozen=True)
class Header:
    """The content of a header. `shapes` are those of tensors stored as packed bits."""

    config: AdapterConfig
    patterns: tuple[str, ...]
    targets_digest: str
    base: Mapping[str, str]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def written(self) -> dict[str, str]:
        """The metadata of a safetensors file, without the checksum."""
        beside = {**classes_metadata(self.classes), **({ORIGIN: canonical(self.origin)} if self.origin else {})}
        if self.config.format_version in SLIM:
            return self._slim() | beside
        return {
            "format": "pt",
            ADAPTER_MARK: self.config.format_version,
            CONFIG: self.config.to_json(),
            TARGETS: canonical({"patterns": list(self.patterns), "sha256": self.targets_digest}),
            BASE: canonical(self.base),
            "superlora.prng": GENERATOR,
            RECIPE: canonical(self.recipe),
            METRICS: canonical(self.metrics),
            **beside,
        }

    def _slim(self) -> dict[str, str]:
        own, usual = _plain(self.config), _plain(_config_of(self.recipe))
        targets = {"patterns": list(self.patterns), "sha256": _shorter(self.targets_digest)}
        base = {**self.base, "sha256": _shorter(self.base["sha256"])}
        said = {
            CONFIG: {name: value for name, value in own.items() if value != usual[name]},
            TARGETS: _without(targets, {"patterns": _patterns_of(self.recipe)}),
            BASE: _without(base, {"name": _base_of(self.recipe), "dtype": "float32"}),
            RECIPE: differences(self.recipe) if self.recipe else {},
            METRICS: {name: _rounded(value) for name, value in self.metrics.items()},
            SHAPES: self.shapes,
        }
        used = {name: canonical(content) for name, content in said.items() if content}
        return {ADAPTER_MARK: self.config.format_version, **used}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Header:
        """The inverse of `written`.

        Raises:
            KeyError, TypeError, ValueError, RecursionError, UsageError: the metadata are malformed.
        """
        slim = metadata[ADAPTER_MARK] in SLIM
        absent = dict.fromkeys((CONFIG, RECIPE, METRICS, SHAPES) if slim else (), "{}")
        metadata = {ORIGIN: "{}", SHAPES: "{}", **absent, **metadata}
        recipe, targets, base = _said(metadata, RECIPE), _said(metadata, TARGETS), _said(metadata, BASE)
        config = metadata[CONFIG]
        if slim:
            recipe = completed(recipe) if recipe else {}
            config = json.dumps(_plain(_config_of(recipe)) | _said(metadata, CONFIG))
            targets = {"patterns": _patterns_of(recipe), **targets, "sha256": _longer(targets["sha256"])}
            base = {"name": _base_of(recipe), "dtype": "float32", **base, "sha256": _longer(base["sha256"])}
        return cls(
            config=AdapterConfig.from_json(config),
            patterns=tuple(_text(pattern) for pattern in targets["patterns"]),
            targets_digest=_text(targets["sha256"]),
            base={"name": base["name"], **{key: _text(base[key]) for key in ("sha256", "dtype")}},
            recipe=recipe,
            metrics=_said(metadata, METRICS),
            classes=read_classes(metadata),
            origin=_said(metadata, ORIGIN),
            shapes={name: tuple(map(int, shape)) for name, shape in _said(metadata, SHAPES).items()},
        )


def sealed(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the checksum as written in its format."""
    slim = metadata[ADAPTER_MARK] in SLIM
    return {**metadata, CHECKSUM: _shorter(metadata[CHECKSUM])} if slim else dict(metadata)


def unsealed(metadata: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `sealed`; malformed metadata are returned unchanged, and refused later."""
    try:
        return {**metadata, CHECKSUM: _longer(metadata[CHECKSUM])} if metadata[ADAPTER_MARK] in SLIM else {**metadata}
    except (KeyError, ValueError):
        return dict(metadata)


def classes_metadata(names: Sequence[str]) -> dict[str, str]:
    """The header entry for class names, {} if they are just the numbers 0, 1, …"""
    numbered = list(names) == [str(number) for number in range(len(names))]
    return {} if numbered else {CLASSES: json.dumps(list(names), ensure_ascii=False)}


def read_classes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Class names from a header, () if it has none.

    Raises:
        ValueError, TypeError: the entry is not a list of strings.
    """
    return tuple(_text(name) for name in json.loads(metadata.get(CLASSES, "[]")))


def _config_of(recipe: Mapping[str, Any]) -> AdapterConfig:
    """The knobs in a recipe's `adapter` section; the defaults if it has none or a wrong one."""
    section = recipe.get("adapter")
    knobs = dict(section) if isinstance(section, Mapping) else {}
    knobs = {"seed": recipe.get("seed"), **{name: value for name, value in knobs.items() if name != "targets"}}
    try:
        return AdapterConfig.from_knobs(knobs.pop("method", None), **knobs)
    except (UsageError, TypeError):
        return AdapterConfig()


def _patterns_of(recipe: Mapping[str, Any]) -> Any:
    section = recipe.get("adapter")
    return section.get("targets") if isinstance(section, Mapping) else None


def _base_of(recipe: Mapping[str, Any]) -> Any:
    section = recipe.get("model")
    return section.get("name") if isinstance(section, Mapping) else None


def _plain(config: AdapterConfig) -> dict[str, Any]:
    """All knobs as JSON values."""
    found: dict[str, Any] = json.loads(json.dumps(config.named))
    return found


def _without(whole: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key not in known or value != known[key]}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _shorter(digest: str) -> str:
    return b64encode(bytes.fromhex(digest)).decode().rstrip("=")


def _longer(digest: Any) -> str:
    return b64decode(_text(digest) + "=" * (-len(_text(digest)) % 4), validate=True).hex()


def _said(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    found = json.loads(metadata[name])
    if not isinstance(found, dict):
        raise TypeError(f"{name.removeprefix('superlora.')} is {found!r:.40}, but should be an object")
    return found


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise TypeError(f"{found!r:.40} should be text")
    return found
