"""A run folder: who may write to it, and what is written.

OUT/recipe.yaml  run.json  metrics.jsonl  log.txt  eval.json
OUT/confusion.csv                                for classification, of the test split
OUT/adapter.safetensors, or model.safetensors if the recipe has no adapter
OUT/checkpoints/step-000500/
OUT/pictures/step-000500.png                     for text-to-image, of the validation prompts
OUT/samples/                                     for diffusion and text-to-image, by `superlora eval --against`
OUT/measure.json                                 for diffusion, by `superlora sweep`
OUT/trace.json.gz  tensorboard/  wandb/, if the recipe asks for them

If several processes train together, only one writes. The others make the same calls, which do nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from superlora_cli.files import locked, read_json, system_errors, write_atomic, write_json
from superlora_cli.training.checkpoints import complete_checkpoints, damage, prune, save_checkpoint, step_of

if TYPE_CHECKING:
    from superlora_cli.training.meter import Figures

P = ParamSpec("P")

CONFUSION_FILE = "confusion.csv"
OWN_FILES = ("recipe.yaml", "run.json", "metrics.jsonl", "log.txt", "eval.json", CONFUSION_FILE, "measure.json",
             "adapter.safetensors", "samples", "pictures", "model.safetensors", "checkpoints", "trace.json.gz",
             "tensorboard", "wandb", ".lock")  # fmt: skip


def next_free(folder: Path) -> Path:
    """`runs/quickstart`, or `runs/quickstart-2`, `-3`, … if that is taken."""
    candidate, number = folder, 2
    while candidate.exists() and any(candidate.iterdir()):
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate


def _writing(
    method: Callable[Concatenate[RunFolder, P], None],
) -> Callable[Concatenate[RunFolder, P], None]:
    """Make a method do nothing unless this process writes."""

    @wraps(method)
    def only_where_it_writes(run: RunFolder, *args: P.args, **kwargs: P.kwargs) -> None:
        if run.writes:
            method(run, *args, **kwargs)

    return only_where_it_writes


class RunFolder:
    """The files of one run. Open it with `opened`, which holds the lock.

    Args:
        path: the folder.
        writes: whether this process writes files.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.pictures = path / "pictures"
        self.listeners: list[Callable[[int, dict[str, Any]], None]] = []  # called by `record` with step and figures
        self.viewers: list[Callable[[int, bytes], None]] = []  # called by `show`
        self.warnings: list[str] = []  # of this training

    @contextmanager
    def opened(self) -> Iterator[RunFolder]:
        """Create the folder and lock it for this process; the system releases the lock however the process ends.

        Raises:
            UsageError: it cannot be written. FolderInUseError: another run is in it.
        """
        lock_file, made = self.path / ".lock", not self.path.exists()
        with locked(lock_file, "run"):
            try:
                yield self
            finally:
                if not (self.path / "recipe.yaml").exists():  # no run has started: leave everything as it was
                    lock_file.unlink(missing_ok=True)
                    if made:
                        with suppress(OSError):  # it is not empty, or has gone
                            self.path.rmdir()

    def is_empty(self) -> bool:
        """Whether there is nothing but a lock and temporary files of a killed run."""
        with system_errors(self.path):
            if not self.path.exists():
                return True
            left_over = set(self._left_over())
            return all(entry.name == ".lock" or entry in left_over for entry in self.path.iterdir())

    @_writing
    def clear(self) -> None:
        """Remove the files of a run, and nothing else."""
        for name in OWN_FILES:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            elif name != ".lock":
                target.unlink(missing_ok=True)
        self.sweep()

    @_writing
    def sweep(self) -> None:
        """Remove the temporary files of a run that was killed while writing."""
        for path in self._left_over():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _left_over(self) -> list[Path]:
        files = [path for name in OWN_FILES for path in self.path.glob(f".{name}.*.tmp")]
        return [*files, *self.checkpoints.glob(".step-*.tmp"), *self.pictures.glob(".step-*.tmp")]

    @_writing
    def log(self, line: str) -> None:
        """Append a line with the time to log.txt."""
        path = self.path / "log.txt"
        with system_errors(path), path.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def warn(self, line: str) -> None:
        """Add a warning to log.txt, and to run.json whenever it is written."""
        self.warnings.append(line)
        self.log(f"warning: {line}")

    @_writing
    def truncate_metrics(self, step: int) -> None:
        """Drop the metrics of steps after `step`, which a resumed run writes again."""
        if not self.metrics.exists():
            return
        lines = [line for line in self.metrics.read_text().splitlines() if _step_of(line) <= step]
        write_atomic(self.metrics, "".join(line + "\n" for line in lines), force=True)

    @_writing
    def record(self, step: int, metrics: Mapping[str, Any], figures: Figures | None = None) -> None:
        """Append metrics, and the cost of training, to metrics.jsonl and pass them on to the trackers."""
        cost = {f"{figures.unit}_per_second": round(figures.throughput, 1), "data_wait": round(figures.data_wait, 4),
                "memory": figures.memory} if figures else {}  # fmt: skip
        with system_errors(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **metrics, **cost}) + "\n")
        for tell in self.listeners:
            tell(step, {**metrics, **cost})

    @_writing
    def show(self, step: int, picture: bytes) -> None:
        """Write a PNG of an evaluation, and pass it on to the trackers."""
        with system_errors(self.pictures):
            self.pictures.mkdir(exist_ok=True)
        write_atomic(self.pictures / f"step-{step:06d}.png", picture, force=True)
        for look in self.viewers:
            look(step, picture)

    def losses(self) -> list[tuple[int, float]]:
        """(step, mean loss) of every recorded part of training; [] if this process does not write."""
        if not (self.writes and self.metrics.exists()):
            return []
        lines = map(json.loads, self.metrics.read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    @_writing
    def describe(self, content: Mapping[str, Any]) -> None:
        """Write run.json, with the warnings, if any."""
        write_json(self.path / "run.json", {**content, **self.warned()})

    def warned(self) -> dict[str, list[str]]:
        """`{"warnings": [...]}`; {} if there are none."""
        return {"warnings": self.warnings} if self.warnings else {}

    @_writing
    def write(self, name: str, content: bytes | str) -> None:
        """Write a file of the run."""
        write_atomic(self.path / name, content, force=True)

    @_writing
    def save(
        self, step: int, state: Mapping[str, Any], files: Mapping[str, bytes], *, keep: int, protected: Collection[int]
    ) -> None:
        """Write the checkpoint of `step`, and delete all except the newest `keep` and those at `protected` steps.

        Adapters of steps with pictures stay.
        """
        save_checkpoint(self.checkpoints, step, state, files)
        shown = {step_of(picture.with_suffix("")) for picture in self.pictures.glob("step-*.png")}
        prune(self.checkpoints, keep=keep, protected=protected, shown=shown)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; None if there is none."""
        found = complete_checkpoints(self.checkpoints)
        return found[-1][1] if found else None

    def intact_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint with intact files, or None, and what is wrong with newer ones."""
        damaged: list[str] = []
        for _, path in reversed(complete_checkpoints(self.checkpoints)):
            cause = damage(path)
            if cause is None:
                return path, damaged
            damaged.append(f"{path} is skipped: {cause}")
        return None, damaged

    def about(self) -> dict[str, Any]:
        """The contents of run.json; {} if it cannot be read."""
        return read_json(self.path / "run.json")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a torn last line


def environment() -> dict[str, Any]:
    """Versions, machine and git state, for run.json."""
    import platform
    import subprocess
    from importlib.metadata import version

    import torch

    import superlora_cli

    try:
        asked = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False)
        state = git.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        state = None
    return {
        "superlora": superlora_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "git": state,
    }
