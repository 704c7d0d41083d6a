"""The methods of the head-to-head: their libraries, names and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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
    def title(self) -> str:
        """Ours in bold, others with their library, in Markdown."""
        return f"**{self.name}**" if self.ours else f"{self.library} {self.name}"

    @property
    def knobs(self) -> str:
        """The settings in words: "order: 3, rank: 4"."""
        return ", ".join(f"{name}: {_plain(value)}" for name, value in self.settings.items())


def comparison() -> Iterator[Method]:
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


def _plain(value: Any) -> str:
    return (
        "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}" if isinstance(value, dict) else str(value).lower()
    )
