"""Where each key of a recipe comes from: a line of the file, or an override."""

from __future__ import annotations

from collections.abc import Mapping


class Places:
    """The origin of each key, by dotted path.

    Args:
        file: name of the file, for messages.
        positions: (line, column) of each key in it.
    """

    def __init__(self, file: str, positions: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.file = file
        self._lines = {key: line for key, (line, _) in (positions or {}).items()}
        self._overrides: dict[str, tuple[int, str]] = {}

    def override(self, key: str, text: str) -> None:
        """Record that `key` and everything below it come from the override `text`."""
        for origins in (self._lines, self._overrides):
            for old in [old for old in origins if old == key or old.startswith(key + ".")]:
                del origins[old]
        self._overrides[key] = (len(self._overrides), text)

    def where(self, key: str) -> str:
        """`recipe.yaml:7: train.steps`, or the text of the override that set it.

        >>> Places("recipe.yaml", {"train": (6, 1), "train.steps": (7, 3)}).where("train.steps")
        'recipe.yaml:7: train.steps'
        """
        origin = self._origin(key)
        if origin in self._overrides:
            text = self._overrides[origin][1]
            named = text.split("=", 1)[0].strip()
            return text if f"{named}.".startswith(f"{key}.") else f"{text}: {key}"
        line = f":{self._lines[origin]}" if origin in self._lines else ""
        return f"{self.file}{line}: {key}"

    def rank(self, key: str) -> tuple[int, int]:
        """A sort key for keys in the order they were written: those of the file by line, then those of overrides."""
        origin = self._origin(key)
        return (1, self._overrides[origin][0]) if origin in self._overrides else (0, self._lines.get(origin, 0))

    def _origin(self, key: str) -> str:
        """The nearest key at or above `key` whose place is known; "" if there is none."""
        while key and key not in self._overrides and key not in self._lines:
            key = key.rpartition(".")[0]
        return key
