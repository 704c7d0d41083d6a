"""One training step of ViT-base-wide models with every kind of adapter: `python benchmarks/step_time.py`.

A step is forward, cross-entropy, backward and AdamW on the adapter, with random images and weights (float32 unless
--precision bf16) and a frozen head. All variants share the frozen weights and take turns in one process. Ours run
as in the training loop: forward and backward inside `adapter.one_step()`.

`frozen` is the backbone without an adapter, forward and backward through its activations. In every variant alike the
output of the patch embedding asks for a gradient, so that activations have one everywhere: × frozen is then what
the adapter costs and nothing else, and a model of 3 blocks stands for one of 12, where the first block's share of
the gradients is small.

`held` is what a variant keeps between steps (its parameters, optimizer state, frozen draws) and `peak` the most
that its tensors take in a step, held included; both are on top of the backbone's weights, and measured untimed.

--compile compiles every model by `torch.compile` first, as `train.compile` does.

--projection times F alone as well: all 24 q and v weights of ViT-base from ρ = 0.1. `--projection --only frozen`
measures little else. Goals are reported, not enforced.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import projection_time
import timm
import torch
from rich.console import Console
from rich.table import Table
from timing import Criterion, Run, Spread, Times, device_called, held_bytes, interleaved, peak_bytes, ratio, setting
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.models.targets import expand

QV, QKV = ("q", "v"), ("blocks.*.attn.qkv",)
LINEAR = {"projection": "linear", "ratio": 0.1}

# name: (targets, preset, knobs)
OURS: dict[str, tuple[tuple[str, ...], str | None, dict[str, Any]]] = {
    "lora": (QV, "lora", {"rank": 8}),
    "lora-materialised": (QV, "lora", {"rank": 8, "execution": "materialised"}),
    "lora-qkv": (QKV, "lora", {"rank": 8, "execution": "factored"}),  # like for like with peft-lora
    "lokr": (QV, "lokr", {"rank": 8}),
    "lokr-qkv": (QKV, "lokr", {"rank": 8}),  # like for like with peft-lokr
    "lotr": (QV, "lotr", {"rank": 8}),
    "lonkr": (QV, "lonkr", {}),
    "loha": (QV, "loha", {"rank": 8}),
    "dense": (QV, "dense", {}),
    "regular2d": (QV, None, {"order": 2, "rank": 22}),
    "lorta3d": (QV, "lorta", {"order": 3, "rank": 4}),
    "lorta5d": (QV, "lorta", {"order": 5, "rank": 1}),
    "regular2d-linear": (QV, None, {"order": 2, "rank": 22, **LINEAR}),
    "lorta3d-shuffle": (QV, "lorta", {"order": 3, "rank": 4, "projection": "shuffle"}),
    "lorta3d-linear": (QV, "lorta", {"order": 3, "rank": 4, **LINEAR}),
    "lorta3d-nonlinear": (QV, "lorta", {"order": 3, "rank": 4, **LINEAR, "projection": "nonlinear"}),
}

# name: (class of peft, its keywords), all on the whole qkv; what is not given is PEFT's default
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-lora": ("LoraConfig", {"r": 8, "lora_alpha": 8}),
    "peft-lokr": ("LoKrConfig", {"r": 8, "alpha": 8, "decompose_factor": 8}),
    "peft-loha": ("LoHaConfig", {"r": 8, "alpha": 8}),
    "peft-vera": ("VeraConfig", {}),
    "peft-fourierft": ("FourierFTConfig", {}),
    "peft-randlora": ("RandLoraConfig", {}),
}
BASES = ("frozen", "peft-lora")


@dataclass
class Variant:
    """A model with its adapter; `path` is the execution path, `projected` whether it uses F."""

    model: nn.Module
    one_step: Callable[[], AbstractContextManager[None]] = nullcontext
    path: str = ""
    projected: bool = False
    optimizer: torch.optim.Optimizer | None = field(init=False)
    trained: int = field(init=False)
    held: int = 0
    peak: int = 0

    def __post_init__(self) -> None:
        self.model.train()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = sum(parameter.numel() for parameter in parameters)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0) if parameters else None

    def step(self, images: Tensor, labels: Tensor, precision: str) -> None:
        """One optimizer step with new gradients."""
        with self.one_step():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = functional.cross_entropy(self.model(images), labels)
            loss.backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def ask_for_gradient(module: nn.Module, args: object, output: Tensor) -> Tensor:
    """The hook on the patch embedding: makes the output of frozen weights a leaf of the graph."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def backbone(depth: int, image_size: int, device: torch.device) -> nn.Module:
    """A frozen ViT-base of `depth` blocks with random weights."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("vit_base_patch16_224", depth=depth, img_size=image_size)
    model.get_submodule("patch_embed").register_forward_hook(ask_for_gradient)
    return model.requires_grad_(False).to(device)


def build(name: str, base: nn.Module) -> Variant:
    """The variant `name` on a copy of `base` that shares its weights."""
    model = copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()})
    if name in OURS:
        patterns, method, knobs = OURS[name]
        config = AdapterConfig.from_knobs(method, **knobs)
        adapter = attach(model, expand(model, patterns), config)
        path = "factored" if adapter.factored else "materialised"
        return Variant(model, adapter.one_step, path, projected=config.projection != "identity")
    if name in PEERS:
        peft, (kind, keywords) = importlib.import_module("peft"), PEERS[name]
        config = getattr(peft, kind)(target_modules=["qkv"], **keywords)
        return Variant(peft.get_peft_model(model, config))
    return Variant(model)


def measure(
    names: list[str], base: nn.Module, asked: argparse.Namespace, device: torch.device
) -> tuple[dict[str, Variant], Times]:
    """Every variant that works here, and the seconds of its steps, one per round."""
    images = torch.randn(asked.batch, 3, asked.image_size, asked.image_size, device=device)
    labels = torch.randint(1000, (asked.batch,), device=device)
    variants: dict[str, Variant] = {}
    runs: dict[str, Run] = {}
    for name in names:
        before = held_bytes()
        try:
            variant = build(name, base)
            if asked.compile:
                variant.model.compile()
            run = partial(variant.step, images, labels, asked.precision)
            run()
        except Exception as error:
            if name not in PEERS:
                raise
            print(f"{name} does not run here: {error}", file=sys.stderr)
            continue
        variant.held = held_bytes() - before
        variant.peak = variant.held + peak_bytes(run, device)
        variants[name], runs[name] = variant, run
    return variants, interleaved(runs, asked.repeats, device)


def criteria(variants: dict[str, Variant], times: Times) -> list[Criterion]:
    """The goals for a step, with the measurements."""

    def between(name: str, base: str) -> Spread | None:
        return ratio(times, name, base) if name in times and base in times else None

    found = [
        Criterion("lora on q, v ≤ 1.00 × PEFT LoRA on qkv", 1.0, between("lora", "peft-lora")),
        Criterion("lora on qkv ≤ 1.00 × PEFT LoRA on qkv", 1.0, between("lora-qkv", "peft-lora")),
        Criterion("lokr on q, v ≤ 1.00 × PEFT LoKr on qkv", 1.0, between("lokr", "peft-lokr")),
        Criterion("lokr on qkv ≤ 1.00 × PEFT LoKr on qkv", 1.0, between("lokr-qkv", "peft-lokr")),
    ]
    plain = [name for name, one in variants.items() if one.path == "materialised" and not one.projected]
    for name in plain:
        text = f"materialised without projection ≤ 1.15 × frozen: {name}"
        found.append(Criterion(text, 1.15, between(name, "frozen")))
    return found


def chosen(only: str | None) -> list[str]:
    """Names of the variants that `only` asks for, comma-separated patterns; the bases are always included."""
    names = [*BASES, *(name for name in PEERS if name not in BASES), *OURS]
    patterns = only.split(",") if only else ["*"]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SystemExit(f"no variant '{pattern}'; there are {', '.join(names)}")
    return [name for name in names if name in BASES or any(fnmatchcase(name, pattern) for pattern in patterns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images a step (default %(default)s)")
    parser.add_argument("--depth", type=int, default=3, help="blocks (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="compile the models")
    parser.add_argument("--only", metavar="NAME,...", help="these variants, * allowed; the two bases always run")
    parser.add_argument("--projection", action="store_true", help="F alone as well")
    parser.add_argument(
        "--elements", type=int, default=projection_time.VIT_BASE_QV, help="of F's output (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    names, device = chosen(asked.only), device_called(asked.device)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    variants, times = measure(names, backbone(asked.depth, asked.image_size, device), asked, device)
    title = f"One step, batch {asked.batch}, {asked.depth} blocks, {asked.image_size} px, {asked.precision}"
    title += ", compiled" if asked.compile else ""
    table = Table(title=f"{title}: {setting(device)}, {asked.repeats} rounds")
    for column in ("variant", "path"):
        table.add_column(column, no_wrap=True)
    for column in ("trained", "ms", "images/s", "× frozen", "quartiles", "× PEFT LoRA", "held MiB", "peak MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        took, cost = Spread.of(times[name]), ratio(times, name, "frozen")
        peer = ratio(times, name, "peft-lora") if "peft-lora" in times else None
        rows[name] = {"path": variant.path, "trained": variant.trained, "seconds": times[name], "ms": 1e3 * took.median}
        rows[name] |= {"of_frozen": asdict(cost), "of_peft_lora": peer and asdict(peer)}
        rows[name] |= {"held_bytes": variant.held, "peak_bytes": variant.peak}
        ratios = f"{cost.median:.3f}", f"{cost.low:.3f}–{cost.high:.3f}", f"{peer.median:.3f}" if peer else ""
        memory = f"{variant.held / 2**20:.1f}", f"{variant.peak / 2**20:.1f}"
        speed = f"{1e3 * took.median:.1f}", f"{asked.batch / took.median:,.1f}"
        table.add_row(name, variant.path, f"{variant.trained:,}", *speed, *ratios, *memory)
    found = criteria(variants, times)
    lines, projection = [str(one) for one in found], None
    if asked.projection:
        more, projection = projection_time.report(asked, Spread.of(times["frozen"]).median, device)
        lines += more
    if asked.json:
        about = {"setting": setting(device), "asked": vars(asked), "variants": rows, "projection": projection}
        print(json.dumps(about | {"criteria": [one.figures() for one in found]}, indent=2, ensure_ascii=False))
        return
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
