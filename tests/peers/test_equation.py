"""Methods that came after SuperLoRA are settings of its equation: PEFT's update from the same numbers is ours."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import superlora_cli
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.from_base import from_base
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.informed import inform
from superlora_cli.adapter.layout import Plan, plan
from superlora_cli.adapter.prng import random_state
from superlora_cli.adapter.projections import Size
from superlora_cli.adapter.projections._placed import placed
from superlora_cli.adapter.svd import singular
from superlora_cli.adapter.targets import TargetShape

SHAPES = ((16, 24), (16, 24))  # (out, in) of two Linears


def theirs(config: Any, shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[Any]:
    """PEFT's layers on Linears of these shapes, with random numbers in what is trained."""
    torch.manual_seed(0)
    model = nn.ModuleDict({f"w{i}": nn.Linear(columns, rows) for i, (rows, columns) in enumerate(shapes)})
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return [adapted.get_submodule(f"base_model.model.w{i}") for i in range(len(shapes))]


def ours(method: str, shapes: tuple[tuple[int, int], ...] = SHAPES, **knobs: Any) -> Plan:
    targets = [TargetShape(f"w{i}", rows, columns) for i, (rows, columns) in enumerate(shapes)]
    return plan(AdapterConfig.from_knobs(method, **knobs), targets)


def assert_same(shapes: Plan, params: dict[str, Tensor], frozen: Frozen, layers: list[Any]) -> None:
    for delta, layer in zip(deltas(shapes, params, frozen), layers, strict=True):
        torch.testing.assert_close(delta, layer.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shapes", [SHAPES, ((16, 24), (10, 7))])
def test_unilora_is_pefts(shapes: tuple[tuple[int, int], ...]) -> None:
    layers = theirs(peft.UniLoraConfig(r=3, theta_d_length=20, target_modules=["w0", "w1"]), shapes)
    own = ours("unilora", shapes, rank=3, inner={"dim": 20})
    frozen = Frozen(own)
    index = {}
    for i, layer in enumerate(layers):
        bucket, row = next((b, o.members.index(i)) for b, o in enumerate(own.buckets) if i in o.members)
        index[f"b{bucket}_k1_A1", row] = layer.unilora_indices_B["default"]
        index[f"b{bucket}_k1_A2", row] = layer.unilora_indices_A["default"].T
    chosen = torch.cat([index[name, row].flatten() for name, s in own.entries.items() for row in range(s[0])])
    scale = torch.bincount(chosen, minlength=20)[chosen].rsqrt()
    frozen.inner.maps = [lambda theta: theta[:, chosen] * scale]
    frozen.starts = {
        index: torch.zeros_like(start) for index, start in frozen.starts.items()
    }  # PEFT's update is not relative to its start
    theta = layers[0].unilora_theta_d["default"].detach()
    assert own.params == theta.numel()
    assert_same(own, {"theta": theta[None]}, frozen, layers)


def test_vblora_is_pefts() -> None:
    config = peft.VBLoRAConfig(r=1, num_vectors=5, vector_length=8, topk=2, target_modules=["w0", "w1"])
    layers = theirs(config)
    own = ours("vblora", rank=1, inner={"dim": 8, "vectors": 5})
    frozen = Frozen(own)
    frozen.starts = {0: torch.zeros_like(frozen.starts[0])}  # PEFT's update is not relative to its start
    weights = [layer.vblora_logits_B["default"] for layer in layers]
    weights += [layer.vblora_logits_A["default"] for layer in layers]
    bank = layers[0].vblora_vector_bank["default"]
    theta = torch.cat([bank.flatten(), *(each.flatten() for each in weights)]).detach()
    assert_same(own, {"theta": theta[None]}, frozen, layers)


def test_the_one_hot_map_uses_every_number_equally_often_as_pefts() -> None:
    layers = theirs(peft.UniLoraConfig(r=3, theta_d_length=20, target_modules=["w0", "w1"]))
    indices = [layer.unilora_indices_A["default"] for layer in layers]
    indices += [layer.unilora_indices_B["default"] for layer in layers]
    uses = torch.cat([index.flatten() for index in indices]).bincount()
    own = ours("unilora", rank=3, inner={"dim": 20})
    image = torch.cat([Frozen(own).inner.maps[0](row[None]) for row in torch.eye(20)])  # (d, entries)
    assert sorted((image != 0).sum(1).tolist()) == sorted(uses.tolist())
    torch.testing.assert_close(image @ image.T, torch.eye(20))  # isometric


@pytest.mark.parametrize("shapes", [SHAPES, ((16, 24), (10, 7))])
def test_vera_is_pefts(shapes: tuple[tuple[int, int], ...]) -> None:
    layers = theirs(peft.VeraConfig(r=5, target_modules=["w0", "w1"], save_projection=True), shapes)
    own = ours("vera", shapes, rank=5)
    frozen, params = Frozen(own), {}
    for index, bucket in enumerate(own.buckets):
        members, here = [layers[i] for i in bucket.members], f"b{index}_k1_"
        rows, columns = bucket.shape.sides
        frozen.inner.fixed[here + "A1"] = members[0].vera_B["default"][:rows].expand(len(members), 1, rows, 5)
        frozen.inner.fixed[here + "A2"] = (
            members[0].vera_A["default"][:, :columns].T.expand(len(members), 1, columns, 5)
        )
        params[here + "core"] = torch.stack([m.vera_lambda_d["default"].detach() for m in members])[:, None]
        params[here + "D1"] = torch.stack([m.vera_lambda_b["default"].detach() for m in members])[:, None]
    assert own.params == sum(5 + rows for rows, _ in shapes)
    assert_same(own, params, frozen, layers)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("alpha", [3, 7])
def test_randlora_is_pefts(shape: tuple[int, int], alpha: int) -> None:
    config = peft.RandLoraConfig(r=3, randlora_alpha=alpha, target_modules=["w0", "w1"], save_projection=True)
    layers = theirs(config, (shape, shape))
    small = 2 if shape[1] <= shape[0] else 1  # the mode of the smaller side has the diagonal
    own = ours("randlora", (shape, shape), rank=3, diagonals=[small], alpha=alpha)
    assert own.buckets[0].shape.terms == 6 == -(-16 // 3)
    frozen = Frozen(own)
    # PEFT flattens A as (rank, basis) and B as (basis, rank) before it pairs their entries: B's are ordered accordingly
    a, b = layers[0].randlora_A["default"], layers[0].randlora_B["default"]  # (r, 1, 16), (24, 6, r)
    frozen.inner.fixed[f"b0_k1_A{small}"] = a.permute(1, 2, 0).expand(2, 6, 16, 3)
    frozen.inner.fixed[f"b0_k1_A{3 - small}"] = b.reshape(24, 3, 6).permute(2, 0, 1).expand(2, 6, 24, 3)
    params = {
        "b0_k1_core": torch.stack([layer.randlora_lambda["default"].detach().T for layer in layers]),
        f"b0_k1_D{small}": torch.stack([layer.randlora_gamma["default"].detach() for layer in layers]),
    }
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == own.tensors
    assert_same(own, params, frozen, layers)


@pytest.mark.parametrize("tied", [False, True])
def test_tinylora_is_pefts(tied: bool) -> None:
    layers = theirs(peft.TinyLoraConfig(r=2, u=3, weight_tying=float(tied), target_modules=["w0", "w1"]))
    own = ours("tinylora", rank=2, inner={"dim": 3, "per": "all" if tied else "group"}, rescale=False)
    frozen = Frozen(own, base=from_base(own, [layer.weight for layer in layers]))
    for name, buffer in (("A1", "tinylora_B"), ("A2", "tinylora_A")):
        values = [getattr(layer, buffer)["default"] for layer in layers]
        frozen.inner.fixed[f"b0_k1_{name}"] = torch.stack([v if name == "A1" else v.T for v in values])[:, None]
    if tied:  # one θ, another P for each weight
        matrix = torch.cat([layer.tinylora_P["default"].flatten(1) for layer in layers], 1)  # (u, 2 · r²)
    else:  # a θ for each weight; P is shared by weights of a shape
        matrix = layers[0].tinylora_P["default"].flatten(1)
        layers[1].tinylora_P["default"] = layers[0].tinylora_P["default"]
    frozen.inner.maps = [lambda theta: theta @ matrix]
    values = layers[0].tinylora_v["default"]
    theta = torch.stack([values[key].detach() for key in sorted(values.keys())])
    assert own.params == theta.numel()
    assert_same(own, {"theta": theta}, frozen, layers)


@pytest.mark.parametrize("shape", [(16, 24), (12, 12), (9, 5)])
def test_fourierft_is_pefts(shape: tuple[int, int]) -> None:
    config = peft.FourierFTConfig(n_frequency=9, scaling=70.0, target_modules=["w0", "w1"])
    layers = theirs(config, (shape, shape))
    ratio = {384: 0.0234, 144: 0.0625, 45: 0.2}[shape[0] * shape[1]]  # 9 coefficients each
    own = ours("fourierft", (shape, shape), ratio=ratio, rescale=False, alpha=70.0, scaling="alpha")
    assert own.params == 18
    assert own.buckets[0].shape.grid == shape
    for layer in layers:
        layer.indices["default"] = torch.stack([frequencies(own) // shape[1], frequencies(own) % shape[1]])
    values = torch.stack([layer.fourierft_spectrum["default"].detach() for layer in layers])
    assert_same(own, {"b0_k1_core": values[:, None]}, Frozen(own), layers)


def frequencies(shapes: Plan) -> Tensor:
    """Where our coefficients lie in the flattened spectrum."""
    unit = shapes.buckets[0].shape
    assert unit.grid is not None
    draw = random_state(shapes.config.seed, "projection", "frequencies", unit.n_in, unit.n_out)
    return torch.from_numpy(draw.permutation(unit.grid[0] * unit.grid[1])[: unit.n_in])


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_lora_xs_is_its_singular_value_decomposition(shape: tuple[int, int]) -> None:
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    own = ours("lora_xs", (shape, shape), rank=4)
    core = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    found = deltas(own, {"b0_k1_core": core}, Frozen(own, base=from_base(own, weights)))
    for weight, c, delta in zip(weights, core[:, 0], found, strict=True):
        u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
        u, v = (vectors * signs(vectors) for vectors in (u[:, :4], vh[:4].T))
        torch.testing.assert_close(delta.double(), (u * s[:4]) @ c.double() @ v.T, rtol=1e-5, atol=1e-5)


def signs(vectors: Tensor) -> Tensor:
    """What makes the largest entry of every column positive."""
    return vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def test_singular_vectors_are_those_of_the_decomposition() -> None:
    matrix = torch.randn(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(singular(matrix, 5, scaled=True), u[:, :5] * signs(u[:, :5]) * s[:5])


def test_shira_is_pefts() -> None:
    layers = theirs(peft.ShiraConfig(r=1, target_modules=["w0", "w1"]))
    own = ours("shira", ratio=0.1041, rescale=False)  # 40 of 384 elements
    frozen = Frozen(own)
    frozen.chosen = {i: layer.shira_indices["default"][0] * 24 + layer.shira_indices["default"][1]
                     for i, layer in enumerate(layers)}  # fmt: skip
    frozen.maps = {key: lambda x, at: placed(x, at.long(), Size(40, 384, rescale=False)) for key in frozen.maps}
    values = torch.stack([layer.shira_weight["default"].detach() for layer in layers])
    for delta, layer in zip(deltas(own, {"b0_k1_core": values[:, None]}, frozen), layers, strict=True):
        torch.testing.assert_close(delta, layer.get_delta_weight("default").detach().to_dense())


def assert_merged_alike(own: Plan, params: dict[str, Tensor], layers: list[Any]) -> None:
    """What PEFT's layers add to their weights on merging is our ΔW."""
    bases = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == own.tensors
    made = deltas(own, params, Frozen(own, base=from_base(own, bases)))
    for layer, base, delta in zip(layers, bases, made, strict=True):
        layer.merge()
        torch.testing.assert_close(layer.get_base_layer().weight.detach() - base, delta, rtol=1e-5, atol=1e-5)


def test_hira_is_pefts() -> None:
    layers = theirs(peft.HiraConfig(r=3, target_modules=["w0", "w1"]))
    params = {
        "b0_k1_A1": torch.stack([layer.hira_B["default"].detach() for layer in layers])[:, None],
        "b0_k1_A2": torch.stack([layer.hira_A["default"].detach().T for layer in layers])[:, None],
    }
    assert_merged_alike(ours("hira", rank=3), params, layers)


@pytest.mark.parametrize("multiply", ["rows", "columns"])
def test_ia3_is_pefts(multiply: str) -> None:
    names = ["w0", "w1"]
    config = peft.IA3Config(target_modules=names, feedforward_modules=names if multiply == "columns" else [])
    layers = theirs(config)
    scales = torch.stack([layer.ia3_l["default"].detach().flatten() for layer in layers])
    assert_merged_alike(ours("ia3", multiply=multiply), {"b0_k1_core": scales[:, None] - 1}, layers)


def test_oft_is_pefts() -> None:
    layers = theirs(peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=["w0", "w1"]))
    upper, params = torch.triu_indices(8, 8, 1), torch.zeros(2, 3, 8, 8)
    for x, layer in zip(params, layers, strict=True):
        x[:, *upper] = layer.oft_R["default"].weight.detach()
    own = ours("oft", block=8)
    assert_merged_alike(own, {"b0_k1_core": params.view(2, 1, -1)}, layers)


def test_dora_of_one_rank_more_is_pefts() -> None:
    layers = theirs(peft.LoraConfig(r=3, lora_alpha=3, use_dora=True, target_modules=["w0", "w1"]))
    left, right = torch.zeros(2, 1, 16, 4), torch.zeros(2, 1, 25, 4)
    for i, layer in enumerate(layers):
        norm = layer.get_base_layer().weight.detach().norm(dim=1)
        left[i, 0, :, :3] = layer.lora_B["default"].weight.detach() * 24**0.5 / norm[:, None]
        left[i, 0, :, 3] = layer.lora_magnitude_vector["default"].weight.detach() / norm - 1
        right[i, 0, :24, :3], right[i, 0, 24, 3] = layer.lora_A["default"].weight.detach().T, 1
    assert_merged_alike(ours("dora", rank=4), {"b0_k1_A1": left, "b0_k1_A2": right}, layers)


def test_numbers_at_the_largest_weights_are_pefts() -> None:
    layers = theirs(peft.SupertuningConfig(sparsity=0.9, target_modules=["w0", "w1"]))
    own = ours("shira", projection="largest", ratio=0.0989, rescale=False)  # 38 of 384 elements
    values = torch.stack([layer.supertuning_values["default"].detach() for layer in layers])
    assert_merged_alike(own, {"b0_k1_core": values[:, None]}, layers)


def test_principal_components_of_inputs_are_pefts_eva() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 24, generator=generator) * 0.7 ** torch.arange(24) + 1
    model = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 8))
    mine = copy.deepcopy(model)
    adapter = superlora_cli.attach(mine, ["0", "2"], "lora", rank=3, init="activations")
    inform(mine, adapter, lambda: mine(x).sum().backward())
    settings = {"init_lora_weights": "eva", "eva_config": peft.EvaConfig(rho=1.0)}
    their = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["0", "2"], **settings))
    peft.initialize_lora_eva_weights(
        their,
        [{"x": x}] * 4,
        forward_fn=lambda model, batch: model(batch["x"]),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    for number, name in enumerate(("0", "2")):
        rows = their.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.detach()  # orthonormal
        plane = adapter.factors[f"b{number}_k1_A2"].detach()[0, 0]
        own = plane / len(plane) ** 0.5
        torch.testing.assert_close(own @ own.T, rows.T @ rows, rtol=0, atol=1e-5)
