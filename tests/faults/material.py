"""What is to be spoiled: a run of a few steps with its adapter and checkpoints, its base, and what comes of them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from PIL import Image

from superlora_cli.models.embedded import ASSETS
from tests.forking.commands import Commands

BASE = ASSETS / "glyphs_vit.safetensors"
PHOTOS, PIPELINE = "photos", "pipeline"  # folders of images with captions, and of a pipeline
TEXT_TO_IMAGE = f"""\
task: text-to-image
model: {{name: glyphs_text}}
data: {{name: {PHOTOS}, image_size: 16, validation: 0}}
adapter: {{method: lora, rank: 1, targets: [q]}}
train: {{steps: 4, batch_size: 2, checkpoint_every: 2, threads: 1}}
"""
TRAIN_TEXT = ("train", "text.yaml", "--out", "run", "--quiet")
LANGUAGE = """\
task: language
model: {name: sums_llama}
data: {name: texts.jsonl}
language: {length: 16}
adapter: {method: lora, rank: 1, targets: [q]}
train: {steps: 4, batch_size: 2, checkpoint_every: 2, threads: 1}
"""
TRAIN_ON_TEXTS = ("train", "language.yaml", "--out", "run", "--quiet")
QUICK = ("train.steps=6", "eval.every=3", "train.checkpoint_every=2", "train.keep=3", "train.threads=1")


class Material:
    """Files made once and copied for every trial.

    Args:
        commands: carry out what makes them.
        place: an empty folder.

    Attributes:
        run: the folder of a finished run on `glyphs_vit`.
        adapter: its adapter file.
    """

    def __init__(self, commands: Commands, place: Path) -> None:
        self.commands, self.place = commands, place
        self._count = 0
        commands.right("train", "quickstart", *QUICK, "--out", "run", "--quiet", cwd=place)
        self.run = place / "run"
        self.adapter = self.run / "adapter.safetensors"

    @cached_property
    def other(self) -> Path:
        """Another adapter file of the same base."""
        self.commands.right("train", "quickstart", *QUICK, "seed=1", "--out", "other", "--quiet", cwd=self.place)
        return self.place / "other" / "adapter.safetensors"

    @cached_property
    def on_a_pipeline(self) -> Path:
        """A folder with `PIPELINE`, a tiny one, a finished run on it, and in `cache` what it has computed."""
        from tests.pipelines import saved

        self.commands.know("tests.pipelines")
        place = self.place / "text"
        place.mkdir()
        self.pictures(place)
        saved("StableDiffusion", place / PIPELINE)
        env = {"XDG_CACHE_HOME": str(place / "cache")}
        done = self.commands.start(*self.on_a_pipeline_words, cwd=place, env=env).done
        if done.code:
            raise AssertionError(done.err)
        return place

    on_a_pipeline_words = (*TRAIN_TEXT, f"model.name=diffusers:{PIPELINE}")

    @staticmethod
    def pictures(place: Path) -> None:
        """`text.yaml`, a recipe, and its images with captions."""
        draw = random.Random(0)
        (place / "text.yaml").write_text(TEXT_TO_IMAGE)
        (place / PHOTOS).mkdir()
        for number in range(4):
            image = Image.frombytes("RGB", (16, 16), draw.randbytes(16 * 16 * 3))
            image.save(place / PHOTOS / f"{number}.png")
            (place / PHOTOS / f"{number}.txt").write_text(f"picture {number}")

    @staticmethod
    def texts(place: Path) -> None:
        """`language.yaml`, a recipe, and its texts."""
        (place / "language.yaml").write_text(LANGUAGE)
        rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(5)]
        (place / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def fill(self, words: Sequence[str]) -> tuple[str, ...]:
        """Words of a command with the paths that `ADAPTER` and `RUN` stand for."""
        paths = {"ADAPTER": str(self.adapter), "RUN": str(self.run)}
        return tuple(paths.get(word, word) for word in words)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty folder for one trial."""
        self._count += 1
        path = self.place / f"trial-{self._count}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
