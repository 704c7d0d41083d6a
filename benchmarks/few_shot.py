"""Few-shot classification on bases of four widths: what `transfer.py` and `real_base.py` train, and how.

Bases: `glyphs_vit` (64 wide, shipped), `vit192` and `vit768` (192 and 768 wide, made by benchmarks/bases/*.yaml), all
from printed to handwritten digits, and a pretrained ViT-S (384 wide) on 1,000 images of Fashion-MNIST. Two of them are
also trained for a shorter or a longer time, under names of their own. All get a new head, which is trained beside the
adapter at a rate of its own; the fused qkv are split into three Linears, which every library can adapt. AdamW under
OneCycleLR, float32, no augmentation, no weight decay.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attaching import Data, adapted, digits, split_qkv, start_from
from methods import Method
from recorded import Records, Row, key_of
from torch import Tensor, nn
from torch.nn import functional

HEAD_RATE = 0.01  # of the new head, whatever the adapter's: the linear probe's best by validation on the real base
SEEDS = (0, 1, 2, 3, 4)
TRAIN, HELD_OUT = 1000, 1000  # images of Fashion-MNIST; the test images are its own first 1,000
ARCHITECTURES = {"vit192": "vit_tiny_patch16_224", "vit768": "vit_base_patch16_224"}
VIT_S = "vit_small_patch14_dinov2.lvd142m"


@dataclass(frozen=True)
class Where:
    """Where bases and data lie: safetensors of the ViT-S (None: timm downloads it), the folder of torchvision's
    FashionMNIST, and the one with the runs that made vit192 and vit768."""

    base: str | None = None
    data: str = "data"
    bases: str = "runs/bases"
    device: str = "cpu"


@dataclass(frozen=True)
class Work:
    """A base, and how long it is trained."""

    base: str
    width: int
    steps: int
    batch: int
    size: int  # of the images, in pixels
    seeds: tuple[int, ...] = SEEDS


WORK = {
    "glyphs_vit": Work("glyphs_vit", 64, 300, 64, 16),
    "vit192": Work("vit192", 192, 300, 64, 16),
    "vit192, short": Work("vit192", 192, 150, 32, 16),
    "vit768": Work("vit768", 768, 300, 64, 16, SEEDS[:1]),
    "vit_s": Work("vit_s", 384, 120, 32, 56),
    "vit_s, long": Work("vit_s", 384, 480, 64, 56, SEEDS[:2]),
}


class Run(NamedTuple):
    """One training."""

    base: str  # a name in `WORK`
    method: Method
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """What makes it that run."""
        return key_of(*self)


@dataclass
class Ready:
    """A base with a new head, and images and labels of every split."""

    model: nn.Module
    splits: Data


@cache
def ready(base: str, where: Where) -> Ready:
    """The base with its weights, and its data, on the device; the head's weights start at zero."""
    made = _vit_s(where) if base == "vit_s" else _digits(base, where)
    split_qkv(made.model)
    made.model.eval().requires_grad_(False)
    head: Any = made.model.head
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    on = {name: (images.to(where.device), labels.to(where.device)) for name, (images, labels) in made.splits.items()}
    return Ready(made.model, on)


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
    from superlora_cli.models.build import build
    from superlora_cli.recipe.schema import ModelSection

    section = ModelSection(name="glyphs_vit")
    if base in ARCHITECTURES:
        kwargs, file = {"img_size": 16, "patch_size": 4, "depth": 6}, Path(where.bases, base, "model.safetensors")
        section = ModelSection(name=ARCHITECTURES[base], checkpoint=str(file), kwargs=kwargs)
    made = build(section, classes=10)
    return Ready(made.model, digits(made))


def train(run: Run, where: Where) -> Row:
    """One run: numbers of parameters, validation accuracy, and which test images are right at its end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.backends.cudnn.allow_tf32 = False
    work = WORK[run.base]
    made = ready(work.base, where)
    model, _, size = adapted(made.model, run.method, run.seed)
    model = model.to(where.device)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    head = {name: parameter for name, parameter in model.named_parameters() if ".head." in f".{name}"}
    body = [parameter for name, parameter in trained.items() if name not in head]
    for parameter in head.values():
        parameter.requires_grad_(True)
    groups = [{"params": body, "lr": run.rate}, {"params": list(head.values()), "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    highest = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=work.steps, pct_start=0.1)
    images, labels = made.splits["train"]
    order = drawn(len(images), work, run.seed).to(where.device)

    def loss_of(picked: Tensor) -> Tensor:
        return functional.cross_entropy(model(images[picked]), labels[picked])

    _inform(model, head, lambda: map(loss_of, order))
    start, losses = time.perf_counter(), []
    for picked in order:
        loss = loss_of(picked)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    last = torch.stack(losses)[-10:].mean().item()
    seconds = time.perf_counter() - start
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
        "device": torch.cuda.get_device_name() if where.device == "cuda" else "cpu",
        "step_ms": round(seconds / work.steps * 1000, 1),
        "loss": round(last, 4) if math.isfinite(last) else None,
        **right,
    }


def _inform(model: nn.Module, head: dict[str, nn.Parameter], losses: Callable[[], Iterator[Tensor]]) -> None:
    """`start_from`; meanwhile the head has small random weights, as timm makes it, for zeros have no gradients."""
    for name, parameter in head.items():
        if name.endswith("weight"):
            nn.init.trunc_normal_(parameter, std=0.02)
    start_from(model, losses)
    for parameter in head.values():
        nn.init.zeros_(parameter)
        parameter.grad = None


def drawn(count: int, work: Work, seed: int) -> Tensor:
    """Which of `count` images each step sees: (steps, batch), shuffled anew whenever fewer than a batch are left."""
    generator, waiting, steps = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), []
    while len(steps) < work.steps:
        if len(waiting) < work.batch:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        steps.append(waiting[: work.batch])
        waiting = waiting[work.batch :]
    return torch.stack(steps)


RECORDS = Records("few_shot.jsonl", itemgetter("run"))


def make(runs: Iterable[Run], options: argparse.Namespace, pool: Executor) -> None:
    """Carry out those that are not on record, with bases and data where `options` says."""
    where = Where(options.base, options.data, options.bases, options.device)
    RECORDS.make(train, {run.key: (run, where) for run in runs}, pool)


def share(right: str) -> float:
    """The part of a string of 0 and 1 that is 1."""
    return right.count("1") / len(right)


def options(parser: argparse.ArgumentParser) -> None:
    """The options that both benchmarks have."""
    parser.add_argument("--base", help=f"safetensors of {VIT_S}; default: timm downloads it")
    parser.add_argument("--data", default="data", help="folder of torchvision's FashionMNIST, downloaded if missing")
    parser.add_argument("--bases", default=Where.bases, help="folder of the runs of benchmarks/bases/vit*.yaml")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
