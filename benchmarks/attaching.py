"""How a method of `methods.py` is attached to a ViT, and the task of the head-to-head."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from methods import OURS, Method
from safetensors.torch import save
from torch import Tensor, nn

from superlora_cli.adapter.attach import adapters_of, attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.store import StoredAdapter, digest_base
from superlora_cli.adapter.targets import Target
from superlora_cli.data.source import Look
from superlora_cli.data.splits import load_splits
from superlora_cli.models.base import Base
from superlora_cli.models.build import build
from superlora_cli.recipe.schema import DataSection, ModelSection
from superlora_cli.tasks.work import FIRST

ROLES = ("q", "v")
SEEDED = ("proj_seed", "projection_seed", "random_loc_seed", "projection_prng_key")  # where PEFT's classes say it
Data = dict[str, tuple[Tensor, Tensor]]  # images and labels of every split


class Adapted(NamedTuple):
    """A model with a method on it, its trained parameters by name, and its file's bytes."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    size: int


def adapted(base: nn.Module, method: Method, seed: int) -> Adapted:
    """A copy of the base with the method attached; the base stays unchanged."""
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    on = {OURS: _superlora, "PEFT": _peft, "LyCORIS": _lycoris, "plain": _plain_parameters}[method.library]
    model, size = on(model, method, seed)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return Adapted(model, trained, size)


def start_from(model: nn.Module, losses: Callable[[], Iterator[Tensor]]) -> None:
    """Give an adapter that starts from batches, or chooses its positions by them, what it needs of the first `FIRST`.

    Args:
        losses: the losses of the batches, from the first.
    """
    held = adapters_of(model)
    if not (held and held.get().config.informed):
        return

    def first() -> None:
        for loss in itertools.islice(losses(), FIRST):
            loss.backward()

    inform(model, held.get(), first)


def _superlora(model: nn.Module, method: Method, seed: int) -> tuple[nn.Module, int]:
    targets = tuple(
        Target(f"{name}.{role}", 0, module.width, (module.width, module.width), True)
        for name, module in model.named_modules()
        if isinstance(module, Split)
        for role in ROLES
    )
    knobs = dict(method.settings)
    config = AdapterConfig.from_knobs(knobs.pop("method", None), seed=seed, **knobs)
    sha256, dtype = digest_base(model, targets)
    adapter = attach(model, targets, config)
    factors = dict(adapter.factors.items())
    base = ("glyphs_vit", sha256, dtype)
    return model, len(StoredAdapter.of(adapter.config, targets, factors, patterns=ROLES, base=base).to_bytes())


def _peft(model: nn.Module, method: Method, seed: int) -> tuple[nn.Module, int]:
    import peft

    kinds = {"Uni-LoRA": "UniLora", "TinyLoRA": "TinyLora", "VeRA": "Vera", "LoRA": "Lora", "LoKr": "LoKr",
             "RandLoRA": "RandLora", "VB-LoRA": "VBLoRA"}  # fmt: skip
    kind = getattr(peft, kinds.get(method.name, method.name) + "Config")
    config = kind(target_modules=list(ROLES), **method.settings)
    for key in SEEDED:
        if hasattr(config, key):
            setattr(config, key, seed)
    wrapped = peft.get_peft_model(model, config)
    return wrapped, _bytes(peft.get_peft_model_state_dict(wrapped))


def _lycoris(model: nn.Module, method: Method, seed: int) -> tuple[nn.Module, int]:
    import logging

    from lycoris import LycorisNetwork, create_lycoris  # type: ignore[import-untyped]

    logging.disable(logging.INFO)
    chosen = rf".*attn\.qkv\.[{''.join(ROLES)}]"
    LycorisNetwork.apply_preset({"enable_conv": False, "target_module": [], "target_name": [chosen]})
    network = create_lycoris(model, 1.0, linear_alpha=1, algo="lokr", **method.settings)
    network.apply_to()
    model.add_module("lycoris", network)
    return model, _bytes(network.state_dict())


def _plain_parameters(model: nn.Module, method: Method, seed: int) -> tuple[nn.Module, int]:
    ends = {"linear probe": ("head.weight", "head.bias"), "BitFit, all biases": ("bias",)}
    chosen = ends.get(method.name, tuple(f".{role}.bias" for role in ROLES))
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith(chosen) and (method.name == "linear probe" or not name.startswith("head."))
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return model, _bytes(trained)


def _bytes(tensors: dict[str, Any]) -> int:
    return len(save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}))


class Split(nn.Module):
    """A fused qkv as three Linears, which every library can adapt: q, k and v."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.width = width = fused.in_features
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        with torch.no_grad():
            parts = (self.q, self.k, self.v)
            for part, weight, bias in zip(parts, fused.weight.chunk(3), fused.bias.chunk(3), strict=True):
                part.weight.copy_(weight)
                part.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, 3 · width)."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def split_qkv(model: nn.Module) -> None:
    """Split the fused qkv of every block of a ViT."""
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.qkv = Split(block.attn.qkv)


def base_and_data() -> tuple[nn.Module, Data]:
    """The task of the head-to-head: the base with unfused attention, and the handwritten digits."""
    made = build(ModelSection(name="glyphs_vit", head="frozen"), classes=10)
    data = digits(made)
    split_qkv(made.model)
    return made.model.eval().requires_grad_(False), data


def digits(made: Base) -> Data:
    """The handwritten digits, as a base takes them."""
    look = Look(made.image_size, made.mean, made.std)
    splits = load_splits(DataSection(name="digits", augment="none"), look, seed=0)
    data = {}
    for split in ("train", "validation", "test"):
        images: Any = splits.named(split)
        pairs = [images[i] for i in range(len(images))]
        data[split] = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
    return data
