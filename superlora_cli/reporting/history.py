"""The course of a training, step by step, from its metrics.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Curve = tuple[tuple[int, float], ...]  # (step, value), as written


@dataclass(frozen=True)
class History:
    """The training loss, and by name the metrics on the split by which the best step was chosen."""

    loss: Curve = ()
    scores: Mapping[str, Curve] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> History:
        """Read a metrics.jsonl; damaged lines and values that are not numbers are skipped; a missing file is empty."""
        loss: list[tuple[int, float]] = []
        scores: dict[str, list[tuple[int, float]]] = {}
        for line in _lines(file):
            step = line.get("step")
            if not isinstance(step, int):
                continue
            if _is_number(line.get("loss")):
                loss.append((step, float(line["loss"])))
            scores_now = line.get("eval")
            for name, value in scores_now.items() if isinstance(scores_now, dict) else ():
                if _is_number(value):
                    scores.setdefault(name, []).append((step, float(value)))
        return cls(tuple(loss), {name: tuple(points) for name, points in scores.items()})

    def at(self, step: Any) -> dict[str, float]:
        """The metrics at a step, {} where there was no evaluation."""
        return {name: dict(points)[step] for name, points in self.scores.items() if step in dict(points)}


def _lines(file: Path) -> list[dict[str, Any]]:
    found = []
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:  # cut off
            continue
        if isinstance(content, dict):
            found.append(content)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
