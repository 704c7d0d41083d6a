"""Few-shot classification on bases of three widths: what `transfer.py` and `real_base.py` train, and how.

Bases: `glyphs_vit` (64 wide, shipped), `vit192` (192 wide, made by benchmarks/bases/vit192.yaml), both from printed to
handwritten digits, and a pretrained ViT-S (384 wide) on 1,000 images of Fashion-MNIST. All get a new head, which is
trained beside the adapter at a rate of its own; the fused qkv are split into three Linears, which every library can
adapt. AdamW under OneCycleLR, no augmentation, no weight decay.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rivals import Method, adapted, split_qkv
from torch import Tensor, nn
from torch.nn import functional

HEAD_RATE = 0.01  # of the new head, whatever the adapter's: the linear probe's best by validation on the real base
SEEDS = (0, 1, 2)
TRAIN, HELD_OUT = 1000, 1000  # images of Fashion-MNIST; the test images are its own first 1,000
VIT_S = "vit_small_patch14_dinov2.lvd142m"


@dataclass(frozen=True)
class Where:
    """Where bases and data lie: safetensors of the ViT-S and of vit192 (None: timm downloads the one, the other is not
    used), and the folder of torchvision's FashionMNIST."""

    base: str | None = None
    data: str = "data"
    vit192: str = "runs/bases/vit192/model.safetensors"


@dataclass(frozen=True)
class Work:
    """What is trained on a base."""

    width: int
    steps: int
    batch: int
    size: int  # of the images, in pixels


WORK = {"glyphs_vit": Work(64, 300, 64, 16), "vit192": Work(192, 150, 32, 16), "vit_s": Work(384, 120, 32, 56)}


class Run(NamedTuple):
    """One training."""

    base: str
    method: Method
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """What makes it that run."""
        return json.dumps(self, sort_keys=True)


@dataclass
class Ready:
    """A base with a new head, and images and labels of every split."""

    model: nn.Module
    splits: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@cache
def ready(base: str, where: Where) -> Ready:
    """The base with its weights, and its data; the head's weights start at zero."""
    made = _vit_s(where) if base == "vit_s" else _digits(base, where)
    split_qkv(made.model)
    made.model.eval().requires_grad_(False)
    head: Any = made.model.head
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return made


def _vit_s(where: Where) -> Ready:
    import timm
    from timm.data import resolve_model_data_config

    own = {"pretrained_cfg_overlay": {"file": where.base, "custom_load": False}} if where.base else {}
    model = timm.create_model(VIT_S, pretrained=True, img_size=WORK["vit_s"].size, num_classes=10, **own)
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))

    def images(train: bool, start: int, count: int) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import FashionMNIST

        found = FashionMNIST(where.data, train=train, download=not Path(where.data, "FashionMNIST").is_dir())
        pixels = found.data[start : start + count, None].float() / 255
        size = (WORK["vit_s"].size,) * 2
        pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels.expand(-1, 3, -1, -1) - mean) / std, found.targets[start : start + count]

    splits = {
        "train": images(True, 0, TRAIN),
        "validation": images(True, TRAIN, HELD_OUT),
        "test": images(False, 0, 1000),
    }
    return Ready(model, splits)


def _digits(base: str, where: Where) -> Ready:
    from superlora_cli.data.source import Look
    from superlora_cli.data.splits import load_splits
    from superlora_cli.models.build import build
    from superlora_cli.recipe.schema import DataSection, ModelSection

    section = ModelSection(name="glyphs_vit")
    if base == "vit192":
        kwargs = {"img_size": 16, "patch_size": 4, "depth": 6}
        section = ModelSection(name="vit_tiny_patch16_224", checkpoint=where.vit192, kwargs=kwargs)
    made = build(section, classes=10)
    look = Look(made.image_size, made.mean, made.std)
    found = load_splits(DataSection(name="digits", augment="none"), look, seed=0)
    ready = Ready(made.model)
    for split in ("train", "validation", "test"):
        images: Any = found.named(split)
        pairs = [images[i] for i in range(len(images))]
        ready.splits[split] = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
    return ready


def train(run: Run, where: Where) -> dict[str, Any]:
    """One run: numbers of parameters, validation accuracy, and which test images are right at its end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made, work = ready(run.base, where), WORK[run.base]
    model, trained, size = adapted(made.model, run.method, run.seed)
    head = {name: parameter for name, parameter in model.named_parameters() if ".head." in f".{name}"}
    body = [parameter for name, parameter in trained.items() if name not in head]
    for parameter in head.values():
        parameter.requires_grad_(True)
    groups = [{"params": body, "lr": run.rate}, {"params": list(head.values()), "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    highest = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=work.steps, pct_start=0.1)
    images, labels = made.splits["train"]
    generator, waiting = torch.Generator().manual_seed(run.seed), torch.empty(0, dtype=torch.long)
    start, losses = time.process_time(), []
    for _ in range(work.steps):
        if len(waiting) < work.batch:
            waiting = torch.cat([waiting, torch.randperm(len(images), generator=generator)])
        chosen, waiting = waiting[: work.batch], waiting[work.batch :]
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.process_time() - start
    right = {}
    with torch.no_grad():
        for split in ("validation", "test"):
            images, labels = made.splits[split]
            logits = torch.cat([model(part) for part in images.split(250)])
            right[split] = "".join("01"[hit] for hit in (logits.argmax(-1) == labels).tolist())
    return {
        "run": run.key,
        "parameters": sum(parameter.numel() for parameter in body),
        "head": sum(parameter.numel() for parameter in head.values()),
        "bytes": size,
        "step_ms": round(seconds / len(losses) * 1000, 1),
        "loss": round(sum(losses[-10:]) / len(losses[-10:]), 4) if math.isfinite(losses[-1]) else None,
        **right,
    }


class Records:
    """Runs on record in a file, one a line."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def known(self) -> dict[str, dict[str, Any]]:
        """The runs that have been made, by key."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return {row["run"]: row for row in map(json.loads, lines)}

    def make(self, runs: Iterable[Run], where: Where, workers: int) -> None:
        """Carry out those that are missing, in order, and put each on record when it ends."""
        have = self.known()
        missing = list({run.key: run for run in runs if run.key not in have}.values())
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, self.file.open("a") as file:
            for done in as_completed([pool.submit(train, run, where) for run in missing]):
                row = done.result()
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(row["run"], row["parameters"], f"{share(row['validation']):.3f}", flush=True)


RECORDS = Records(Path(__file__).parent / "records" / "few_shot.jsonl")


def share(right: str) -> float:
    """The part of a string of 0 and 1 that is 1."""
    return right.count("1") / len(right)


def options(parser: argparse.ArgumentParser) -> None:
    """The options that both benchmarks have."""
    parser.add_argument("--base", help=f"safetensors of {VIT_S}; default: timm downloads it")
    parser.add_argument("--data", default="data", help="folder of torchvision's FashionMNIST, downloaded if missing")
    parser.add_argument("--vit192", default=Where.vit192, help="model.safetensors of benchmarks/bases/vit192.yaml")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default 2)")


def where(options: argparse.Namespace) -> Where:
    """What `options` says of it."""
    return Where(options.base, options.data, options.vit192)
