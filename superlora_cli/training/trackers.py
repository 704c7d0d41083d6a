"""Metrics for TensorBoard and Weights & Biases, through Accelerate's trackers, in addition to metrics.jsonl."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from superlora_cli.errors import RunError, UsageError, first_line
from superlora_cli.training.run import RunFolder

PROJECT = "superlora"


def check_trackers(names: Sequence[str]) -> list[str]:
    """The trackers among `names` besides metrics.jsonl.

    Raises:
        UsageError: one is not installed.
    """
    wanted = [name for name in dict.fromkeys(names) if name != "jsonl"]
    for name in wanted:
        if find_spec(name) is None:
            hint = f"pip install 'superlora-cli[{name}]'"
            raise UsageError(f"{name} is not installed", where="output.trackers", hint=hint)
    return wanted


def start_trackers(
    accelerator: Accelerator,
    names: Sequence[str],
    run: RunFolder,
    *,
    config: Mapping[str, Any],
    run_id: str,
    start: int,
) -> None:
    """Send everything that `run` records to `names` too; a run resumed at step `start` continues its curves.

    Args:
        config: recipe keys by dotted path.
        run_id: identifies this run, also when it is resumed.

    Raises:
        RunError: a tracker does not start, e.g. without a login.
    """
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"logging_dir": str(run.path / "tensorboard"), "purge_step": start + 1},
        "wandb": {"dir": str(run.path), "id": run_id, "name": run.path.name, "resume": "allow"},
    }
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
    try:
        accelerator.log_with = [LOGGER_TYPE_TO_CLASS[name](PROJECT, **arguments[name]) for name in names]
        accelerator.init_trackers(PROJECT, config=plain)
    except Exception as error:  # each service has its own errors
        cause = first_line(error)
        hint = "log in, or set WANDB_MODE=offline" if "wandb" in names else None
        raise RunError(f"a tracker does not start: {cause}", where="output.trackers", hint=hint) from None
    run.listeners.append(lambda step, figures: accelerator.log(_named(figures), step=step))
    run.viewers.append(lambda step, picture: _show(accelerator, step, picture))


def _show(accelerator: Accelerator, step: int, picture: bytes) -> None:
    """Pass a PNG on to all trackers, as an array (1, H, W, 3)."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[None]
    for tracker in accelerator.trackers:
        arguments = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"eval/pictures": pixels}, step=step, **arguments)


def _named(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures under the names by which trackers group them: `train/loss`, `eval/accuracy`."""
    named = {f"train/{name}": value for name, value in figures.items() if not isinstance(value, Mapping)}
    return named | {f"eval/{name}": value for name, value in figures.get("eval", {}).items()}
