"""The methods of the head-to-head: their names, how they are attached to the base, and what they train and store."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from superlora_cli.adapter.attach import adapters_of, attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.store import StoredAdapter, digest_base
from superlora_cli.adapter.targets import Target
from superlora_cli.data.source import Look
from superlora_cli.data.splits import load_splits
from superlora_cli.models.build import build
from superlora_cli.recipe.schema import DataSection, ModelSection
from superlora_cli.tasks.work import FIRST

ROLES = ("q", "v")
SEEDED = (
    "proj_seed",
    "projection_seed",
    "random_loc_seed",
    "projection_prng_key",
)  # where PEFT's configurations say it
OURS = "superlora"
SMALL = {"rescale": False, "init": "lora"}  # a small start
STACKED = {"lotr": "LoTR", "cara": "CaRA", "fact_tk": "FacT-TK"}


class Method(NamedTuple):
    """A row of the table: its library, name and settings."""

    library: str
    name: str
    settings: dict[str, Any]

    @property
    def ours(self) -> bool:
        return self.library == OURS

    @property
    def knobs(self) -> str:
        """The settings in words: "order: 3, rank: 4"."""
        return ", ".join(f"{name}: {_plain(value)}" for name, value in self.settings.items())


class Adapted(NamedTuple):
    """A model with a method on it, its trained parameters by name, and its file's bytes."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    size: int


def methods() -> Iterator[Method]:
    """The comparison: every method, at three sizes where possible between 30 and 10,000 parameters."""
    for length in (128, 256, 512):
        yield Method("PEFT", "Uni-LoRA", {"r": 4, "theta_d_length": length})
    for count in (5, 20, 100):
        yield Method("PEFT", "FourierFT", {"n_frequency": count})
    for count in (5, 20, 40):
        yield Method("PEFT", "TinyLoRA", {"r": 2, "u": count})
    for rank in (8, 64, 256):
        yield Method("PEFT", "VeRA", {"r": rank})
    for rank in (1, 2, 4):
        yield Method("PEFT", "LoRA", {"r": rank})
    yield Method("PEFT", "LoKr", {"r": 1, "decompose_both": True})
    yield Method("PEFT", "LoKr", {"r": 1})
    yield Method("PEFT", "LoKr", {"r": 4, "decompose_both": True})
    yield Method("LyCORIS", "LoKr", {"linear_dim": 1, "factor": 8, "decompose_both": True})
    for factor in (2, 4):
        yield Method("LyCORIS", "LoKr", {"linear_dim": 1, "factor": factor})
    for rank in (1, 2, 3):
        yield Method("PEFT", "LoHa", {"r": rank})
    for rank in (32, 16, 8):
        yield Method("PEFT", "RandLoRA", {"r": rank})
    for count, length in ((4, 64), (8, 64), (16, 16)):
        yield Method("PEFT", "VB-LoRA", {"r": 1, "num_vectors": count, "vector_length": length, "topk": 2})
    yield Method("plain", "BitFit, q and v", {})
    yield Method("plain", "BitFit, all biases", {})
    yield Method("plain", "linear probe", {})
    for order, rank, alpha in ((5, 1, 0.3), (3, 2, 0.6), (4, 4, 2.0), (3, 4, 2.0)):
        yield Method(OURS, f"LoRTA {order}D", {"method": "lorta", "order": order, "rank": rank, "alpha": alpha})
    for rank in (1, 4):
        yield Method(OURS, "2D, one group", {"rank": rank, "alpha": 0.6})
    yield Method(OURS, "LoRA", {"method": "lora", "rank": 1})
    yield Method(OURS, "LoNKr", {"method": "lonkr", "rank": 4})
    yield Method(OURS, "LoKr", {"method": "lokr", "rank": 2})
    yield Method(OURS, "dense, projected", {"order": 1, "projection": "nonlinear_v2", "ratio": 0.01})
    yield Method(OURS, "2D, projected", {"rank": 2, "alpha": 0.4, "projection": "linear_v2", "ratio": 0.1})
    for dim, rank in ((64, 4), (128, 8), (256, 4), (512, 8)):
        yield _onehot(dim, rank, "lorta", 3)


def further() -> Iterator[Method]:
    """More sizes of peers, and settings of ours tried to find good ones for a budget."""
    for length in (64, 1024):
        yield Method("PEFT", "Uni-LoRA", {"r": 4, "theta_d_length": length})
    for count in (10, 40):
        yield Method("PEFT", "FourierFT", {"n_frequency": count})
    yield Method("PEFT", "TinyLoRA", {"r": 2, "u": 10})
    for dim, rank in ((32, 4), (64, 4), (128, 4), (256, 4), (256, 8), (300, 2), (300, 8), (300, 16), (512, 8)):
        yield _onehot(dim, rank)
    for dim, rank in ((256, 4), (300, 4), (300, 8), (512, 4), (512, 16), (1024, 4), (1024, 16)):
        yield Method(OURS, "2D one-hot", {"rank": rank, "inner": {"projection": "onehot", "dim": dim}, "alpha": 1.0})
    for order, rank, alpha in ((3, 8, 1.0), (4, 5, 2.0)):
        shared = {"inner": {"projection": "onehot", "dim": 300}, "alpha": alpha}
        yield Method(OURS, f"LoRTA {order}D one-hot", {"method": "lorta", "order": order, "rank": rank, **shared})
    for dim, rank in ((128, 4), (256, 8), (300, 8)):
        yield _onehot(dim, rank, "lorta", 3)
    for dim in (64, 256):
        yield _onehot(dim, 4, "lorta", 4)
    for method, rank in (("lotr", 4), ("fact_tk", 4), ("cara", 8)):  # stacked weights, not a folded tensor
        yield _onehot(300, rank, method)
    yield Method(OURS, "2D, one group", {"rank": 2, "alpha": 0.6})
    for rank, alpha in ((2, 0.6), (3, 1.2)):
        yield Method(OURS, "LoRTA 4D", {"method": "lorta", "order": 4, "rank": rank, "alpha": alpha})
    yield Method(OURS, "LoRA-XS", {"method": "lora_xs", "rank": 5})
    for method in STACKED:
        yield Method(OURS, STACKED[method], {"method": method, "rank": 2})
        yield Method(OURS, STACKED[method], {"method": method, "rank": 2, **SMALL})
    linear = {"projection": "linear_v2", "ratio": 0.1}
    yield Method(OURS, "2D, projected", {"rank": 2, **linear, "alpha": 0.4, "rescale": False})
    yield Method(OURS, "2D, projected", {"rank": 2, **linear, **SMALL})
    for rank, ratio in ((1, 0.4), (3, 0.045), (4, 0.025)):
        yield Method(OURS, "2D, projected", {"rank": rank, **linear, "ratio": ratio, "alpha": 0.4, "rescale": False})
    nonlinear = {"rank": 2, "alpha": 0.4, "projection": "nonlinear_v2", "ratio": 0.1, "rescale": False}
    yield Method(OURS, "2D, projected", nonlinear)
    projected = {"method": "lorta", "order": 3, "rank": 4, "alpha": 0.6, **linear, "rescale": False}
    yield Method(OURS, "LoRTA 3D, projected", projected)
    for order, ranks in ((4, [2, 4, 4, 3]), (5, [3, 3, 3, 3, 2])):
        yield Method(OURS, f"LoRTA {order}D", {"method": "lorta", "order": order, "rank": ranks, "alpha": 2.0})
    yield from _cp()


def _cp() -> Iterator[Method]:
    """CP: no core, or a diagonal one."""
    for rank in (1, 2, 5, 8):
        yield Method(OURS, "CP 4D", {"order": 4, "rank": rank, "core": "identity", **SMALL})
    for alpha in (0.2, 0.6, 2.0):
        yield Method(OURS, "CP 4D", {"order": 4, "rank": 5, "core": "identity", "alpha": alpha})
    yield Method(OURS, "CP 4D", {"order": 4, "rank": 5, "core": "diagonal", "alpha": 0.6})
    yield Method(OURS, "CP 5D", {"order": 5, "rank": 6, "core": "identity", "alpha": 0.6})


def _onehot(dim: int, rank: int, method: str | None = None, order: int | None = None) -> Method:
    """Factors whose entries are `dim` shared numbers, starting small: of a square matrix or a named method."""
    knobs = {"rank": rank, "inner": {"projection": "onehot", "dim": dim}, **SMALL}
    if method is None:
        return Method(OURS, "2D one-hot, small start", knobs)
    name = STACKED.get(method, f"LoRTA {order}D")
    return Method(OURS, f"{name} one-hot", {"method": method, **({"order": order} if order else {}), **knobs})


def ablations() -> Iterator[list[Method]]:
    """Some of our settings, each followed by variants with one change."""
    inner = {"projection": "onehot", "dim": 128}
    yield changed("2D one-hot, small start", {"rank": 4, "inner": inner, **SMALL}, [
        {"rank": 2}, {"rank": 8}, {"groups": 4}, {"groups": "weight", "fold": "none"}, {"order": 3, "method": "lorta"},
        {"init": "unit", "rescale": True, "alpha": 1.0}, {"inner": {"projection": "fastfood", "dim": 128}},
    ])  # fmt: skip
    yield changed("LoRTA 3D", {"method": "lorta", "order": 3, "rank": 2, "alpha": 0.6}, [
        {"init": "lora"}, {"alpha": 2.0}, {"groups": 4, "rank": 1}, {"rates": {"core": 0.2}},
        {"rates": {"core": 5.0}}, {"rates": {"A1": 4.0}},
    ])  # fmt: skip
    yield changed("2D, projected", {"rank": 2, "alpha": 0.4, "projection": "linear_v2", "ratio": 0.1}, [
        {"rescale": False}, {"ratio": 0.5},
    ])  # fmt: skip
    yield changed("LoRA", {"method": "lora", "rank": 1}, [
        {"init": "lora"}, {"rates": {"A1": 4.0}},
    ])  # fmt: skip


def newer() -> Iterator[list[Method]]:
    """The plain settings, each followed by what multiplies the base, chooses positions, starts from batches, or is
    nonlinear.

    alpha is such that a step changes the weights by about the same share as that of the plain setting.
    """
    products = [
        {"multiply": "elementwise", "alpha": 64.0},
        {"multiply": "rows", "alpha": 64.0},
        {"multiply": "columns", "alpha": 64.0},
        {"multiply": "rotation", "block": 8, "alpha": 8.0},
        {"multiply": "magnitude", "alpha": 64.0},
    ]
    chosen = {"method": "shira", "rank": None, "inner": {"projection": "none"}, "groups": 1, "ratio": 0.0026}
    changes = [
        *products,
        *(chosen | {"projection": name} for name in ("sparse", "largest", "steepest")),
        {"rank": 1, "inner": {"projection": "bank", "dim": 16, "vectors": 3}},
    ]
    small = {"rank": 4, "inner": {"projection": "onehot", "dim": 128}, **SMALL}
    yield changed("2D one-hot, small start", small, changes)
    better = [products[0], products[3], products[4]]  # on validation; so they are tried at more sizes
    for dim in (64, 256):
        yield changed("2D one-hot, small start", small | {"inner": {"projection": "onehot", "dim": dim}}, better)
    start, product = {"init": "gradient"}, {"multiply": "elementwise"}
    for name, settings, changes in (
        ("CP 4D", {"order": 4, "rank": 5, "core": "identity", "alpha": 0.6}, [start, product | {"alpha": 9.6}]),
        ("LoRTA 3D", {"method": "lorta", "order": 3, "rank": 2, "alpha": 0.6}, [start]),
        ("LoRTA 3D", {"method": "lorta", "order": 3, "rank": 4, "alpha": 2.0}, [start]),
        ("2D, one group", {"rank": 1, "alpha": 0.6}, [start]),
        ("LoRA", {"method": "lora", "rank": 1},
         [start, product | {"alpha": 16.0}, {"init": "activations"}, {"activation": "gelu"}]),
    ):  # fmt: skip
        yield changed(name, settings, changes)


def changed(name: str, settings: dict[str, Any], changes: list[dict[str, Any]]) -> list[Method]:
    return [Method(OURS, name, settings | change) for change in ({}, *changes)]


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


Data = dict[str, tuple[Tensor, Tensor]]


def base_and_data() -> tuple[nn.Module, Data]:
    """The base with unfused attention, and images and labels of every split."""
    made = build(ModelSection(name="glyphs_vit", head="frozen"), classes=10)
    look = Look(made.image_size, made.mean, made.std)
    splits = load_splits(DataSection(name="digits", augment="none"), look, seed=0)
    data = {}
    for split in ("train", "validation", "test"):
        images: Any = splits.named(split)
        pairs = [images[i] for i in range(len(images))]
        data[split] = torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])
    split_qkv(made.model)
    return made.model.eval().requires_grad_(False), data


def _plain(value: Any) -> str:
    return (
        "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else str(value).lower()
    )
