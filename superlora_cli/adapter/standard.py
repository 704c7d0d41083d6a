"""The usual values of a recipe, which adapter files leave out from format 3 on.

Files are read with this table, so it must never change: other values need a new format version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEFT_OUT = "-"  # key for the list of keys in the table that the recipe does not have

STANDARD: dict[str, Any] = {
    "task": "classification",
    "defaults": 2,
    "seed": 0,
    "adapter": {"targets": ["q", "v"]},
    "model": {"pretrained": True, "head": "new", "kwargs": {}},
    "data": {"root": "data", "validation": 0.1, "download": False, "workers": 0},
    "train": {
        "batch_size": 64,
        "precision": "fp32",
        "device": "auto",
        "accumulate": 1,
        "gradient_checkpointing": False,
        "label_smoothing": 0.0,
        "optimizer": {"name": "AdamW", "weight_decay": 0.0},
        "scheduler": {"name": "OneCycleLR", "pct_start": 0.1, "warmup": 0},
        "keep": 2,
        "checkpoint_at": [],
        "log_every": 10,
    },
    "eval": {"batch_size": 256, "select": "validation"},
    "output": {"trackers": ["jsonl"]},
}


def differences(whole: Mapping[str, Any], standard: Mapping[str, Any] = STANDARD) -> dict[str, Any]:
    """The values of `whole` that differ from the standard; known sections are compared key by key.

    >>> differences({"seed": 1, "output": {"dir": "here"}}, {"seed": 0, "task": "t", "output": {"trackers": []}})
    {'seed': 1, 'output': {'dir': 'here', '-': ['trackers']}, '-': ['task']}
    """
    found: dict[str, Any] = {}
    for key, value in whole.items():
        if key not in standard:
            found[key] = value
        elif value != standard[key] or type(value) is not type(standard[key]):
            known = isinstance(value, Mapping) and isinstance(standard[key], Mapping) and standard[key]
            found[key] = differences(value, standard[key]) if known else value
    if missing := sorted(key for key in standard if key not in whole):
        found[LEFT_OUT] = missing
    return found


def completed(found: Mapping[str, Any], standard: Mapping[str, Any] = STANDARD) -> dict[str, Any]:
    """The inverse of `differences`.

    >>> completed({"seed": 1, "-": ["task"]}, {"seed": 0, "task": "t", "output": {"trackers": []}})
    {'seed': 1, 'output': {'trackers': []}}
    """
    left_out = found.get(LEFT_OUT, [])
    whole = {key: value for key, value in standard.items() if key not in left_out}
    for key, value in found.items():
        known = isinstance(value, Mapping) and isinstance(standard.get(key), Mapping) and standard[key]
        if key != LEFT_OUT:
            whole[key] = completed(value, standard[key]) if known else value
    return whole
