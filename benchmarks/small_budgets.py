"""Which settings are best with 64, 128, 256 and 512 parameters, ours and PEFT's, under one protocol.

    python benchmarks/small_budgets.py                    # runs what is missing, writes the table into docs/equation.md
    python benchmarks/small_budgets.py --only 64 --list   # what would run

The task is the embedded one: glyphs_vit (64 wide, 6 blocks), its q and v as Linears of their own, frozen head, 300
steps of AdamW on batches of 64 handwritten digits under OneCycleLR, no augmentation. Every method has the same grid of
three learning rates; the one with the best validation accuracy (seed 0, at the end of training) is run with two more
seeds, and the mean test accuracy of the three is reported. PEFT's other settings are its defaults. Results are kept in
small_budgets.jsonl, one run a line. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.targets import Target
from superlora_cli.data.source import Look
from superlora_cli.data.splits import load_splits
from superlora_cli.models.base import build
from superlora_cli.recipe.schema import DataSection, ModelSection

RESULTS = Path(__file__).with_suffix(".jsonl")
DOC = Path(__file__).parent.parent / "docs" / "equation.md"
START, END = "<!-- small budgets -->\n", "<!-- small budgets end -->\n"
STEPS, BATCH, SEEDS = 300, 64, (0, 1, 2)
RATES = (0.05, 0.15, 0.4)


class Method(NamedTuple):
    """A line of the table at one budget: what it is called, whose it is, and its settings."""

    budget: int
    name: str
    ours: bool
    settings: dict[str, Any]


def onehot(dim: int, **knobs: Any) -> dict[str, Any]:
    """Settings of ours with a one-hot F_in."""
    return {"inner": {"projection": "onehot", "dim": dim}, **knobs}


def methods() -> Iterator[Method]:
    """Every line of the table, at the budgets where it has a setting."""
    small: dict[str, Any] = {"rescale": False, "init": "lora"}  # Uni-LoRA's start
    budgets = (64, 128, 256, 512)
    for budget in budgets:
        yield Method(budget, "Uni-LoRA, r 4", False, {"kind": "UniLora", "r": 4, "theta_d_length": budget})
        yield Method(budget, "2D r 4, one-hot, small start", True, onehot(budget, rank=4, **small))
        yield Method(budget, "2D r 4, one-hot", True, onehot(budget, rank=4, alpha=1.0))
    yield Method(512, "2D r 8, one-hot", True, onehot(512, rank=8, alpha=2.0))
    yield Method(512, "3D r 4", True, {"method": "lorta", "rank": 4, "alpha": 0.6})
    yield Method(64, "2D by layer r 4, one-hot", True, onehot(64, groups="layer", rank=4, alpha=1.0))
    yield Method(512, "VeRA, r 8", False, {"kind": "Vera", "r": 8})
    for budget in budgets:
        yield Method(budget, "FourierFT", False, {"kind": "FourierFT", "n_frequency": budget // 12})
        yield Method(budget, "TinyLoRA, r 2", False, {"kind": "TinyLora", "r": 2, "u": budget // 12})


class Split(nn.Module):
    """A fused qkv as three Linears, which both libraries can adapt: q, k and v."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.in_features
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        with torch.no_grad():
            parts = (self.q, self.k, self.v)
            for part, weight, bias in zip(parts, fused.weight.chunk(3), fused.bias.chunk(3), strict=True):
                part.weight.copy_(weight)
                part.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, 3 · width)."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def base_and_data() -> tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]:
    """The base with unfused attention, and images and labels of every split."""
    made = build(ModelSection(name="glyphs_vit", head="frozen"), classes=10)
    look = Look(made.image_size, made.mean, made.std)
    splits = load_splits(DataSection(name="digits", augment="none"), look, seed=0)
    data = {}
    for split in ("train", "validation", "test"):
        images: Any = splits.named(split)
        pairs = [images[i] for i in range(len(images))]
        data[split] = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
    for block in made.model.blocks:
        block.attn.qkv = Split(block.attn.qkv)
    return made.model.eval().requires_grad_(False), data


def adapted(base: nn.Module, method: Method, seed: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """A copy of the base with the method on it, and what is trained."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    if method.ours:
        targets = [Target(f"blocks.{i}.attn.qkv.{part}", 0, 64, (64, 64), True) for i in range(6) for part in "qv"]
        knobs = dict(method.settings)
        attach(model, targets, AdapterConfig.from_knobs(knobs.pop("method", None), seed=seed, **knobs))
    else:
        import peft

        settings = dict(method.settings)
        config = getattr(peft, settings.pop("kind") + "Config")(target_modules=["q", "v"], **settings)
        for key in ("proj_seed", "projection_seed", "random_loc_seed", "projection_prng_key"):
            if hasattr(config, key):
                setattr(config, key, seed)
        model = peft.get_peft_model(model, config)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(base: nn.Module, data: dict[str, tuple[Tensor, Tensor]], method: Method, rate: float, seed: int) -> Any:
    """One run: parameters trained, validation and test accuracy at its end."""
    model, trained = adapted(base, method, seed)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS, pct_start=0.1)
    images, labels = data["train"]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        found = {
            split: (model(data[split][0]).argmax(-1) == data[split][1]).float().mean().item()
            for split in ("validation", "test")
        }
    return {"parameters": sum(parameter.numel() for parameter in trained), **found}


def key(method: Method, rate: float, seed: int) -> str:
    """What makes a run that run."""
    return json.dumps([method, rate, seed], sort_keys=True)


def known() -> dict[str, dict[str, Any]]:
    """The runs that have been made."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {row["run"]: row for row in rows}


def table(chosen: list[Method], runs: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: at every budget PEFT's and ours, best first."""
    lines = [
        "| parameters | method | knobs | test accuracy | of 3 seeds | learning rate |",
        "|---:|---|---|---:|---|---:|",
    ]
    for budget in sorted({method.budget for method in chosen}):
        found = []
        for method in (m for m in chosen if m.budget == budget):
            rate = best_rate(method, runs)
            rows = [runs[key(method, rate, seed)] for seed in SEEDS if rate and key(method, rate, seed) in runs]
            if len(rows) == len(SEEDS):
                tests = [row["test"] for row in rows]
                words = " ".join(f"{name}: {_plain(value)}," for name, value in method.settings.items()).rstrip(",")
                whose = f"**{method.name}**" if method.ours else f"PEFT {method.name}"
                mean = statistics.mean(tests)
                spread = f"{min(tests):.3f} – {max(tests):.3f}"
                found.append(
                    (mean, f"| {rows[0]['parameters']} | {whose} | `{words}` | {mean:.3f} | {spread} | {rate:g} |")
                )
        lines += [line for _, line in sorted(found, reverse=True)]
    return "\n".join(lines) + "\n\nMade by `python benchmarks/small_budgets.py`.\n"


def _plain(value: Any) -> str:
    return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else str(value)


def best_rate(method: Method, runs: dict[str, dict[str, Any]]) -> float | None:
    """The rate with the best validation accuracy, once all are known; of equals the smallest."""
    rows = [runs.get(key(method, rate, 0)) for rate in RATES]
    if not all(rows):
        return None
    return max(zip(RATES, rows, strict=True), key=lambda pair: (pair[1]["validation"], -pair[0]))[0]  # type: ignore[index]


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", help="budgets")
    parser.add_argument("--names", nargs="+", help="methods whose name has one of these in it")
    parser.add_argument("--list", action="store_true", help="show the missing runs and make none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [m for m in methods() if not options.only or m.budget in options.only]
    chosen = [m for m in chosen if not options.names or any(name in m.name for name in options.names)]
    made: Callable[[], Any] = base_and_data
    cached: list[Any] = []

    def run(method: Method, rate: float, seed: int) -> None:
        if key(method, rate, seed) in known():
            return
        if options.list:
            print(method.budget, method.name, rate, seed)
            return
        if not cached:
            cached.extend(made())
        row = {"run": key(method, rate, seed), **train(*cached, method, rate, seed)}
        print(method.budget, method.name, rate, seed, row["parameters"], row["validation"], row["test"], flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for method in chosen:
        for rate in RATES:
            run(method, rate, 0)
        for seed in SEEDS[1:]:
            if (rate := best_rate(method, known())) is not None:
                run(method, rate, seed)
    if not options.list and DOC.exists():
        text = DOC.read_text()
        before, after = text.partition(START)[0], text.rpartition(END)[2]
        DOC.write_text(before + START + table(list(methods()), known()) + END + after)
    print(table(chosen, known()))


if __name__ == "__main__":
    main()
