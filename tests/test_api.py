"""Adapters from Python: several by name on one base, in files, merged."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import superlora_cli
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.module import SuperLora
from superlora_cli.errors import MismatchError, UsageError
from tests.conftest import Cli, environment

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EXECUTIONS = pytest.mark.parametrize("execution", ["factored", "materialised"])


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **size)


def moved(adapter: SuperLora, seed: int) -> SuperLora:
    """The adapter with random factors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(0.5 * torch.randn(factor.shape, generator=generator))
    return adapter


def two_adapters(execution: str = "auto") -> tuple[nn.Module, dict[str | None, Tensor]]:
    """A model with `pets` on q and v and `cars` on q and the output projections, and what it gives with each alone."""
    outputs: dict[str | None, Tensor] = {None: vit()(X).detach()}
    model = vit()
    for seed, (name, targets) in enumerate([("pets", ["q", "v"]), ("cars", ["q", "o"])]):
        alone = vit()
        for each in (alone, model):
            moved(superlora_cli.attach(each, targets, "lora", rank=2, name=name, execution=execution), seed)
        outputs[name] = alone(X).detach()
    return model, outputs


@EXECUTIONS
def test_switching_gives_what_each_adapter_gives_alone(execution: str) -> None:
    model, outputs = two_adapters(execution)
    assert not torch.allclose(outputs["pets"], outputs["cars"], atol=1e-3)
    for name in ("cars", "pets", None, "pets", "cars", None):
        superlora_cli.activate(model, name)
        assert torch.equal(model(X), outputs[name])
        with torch.no_grad():
            torch.testing.assert_close(model(X), outputs[name])


def test_switching_copies_nothing_of_the_base() -> None:
    model, _ = two_adapters()
    places = {key: stored_parameter(model, key).data_ptr() for key in vit().state_dict()}
    names = list(model.state_dict())
    for name in ("pets", None, "cars"):
        superlora_cli.activate(model, name)
        assert {key: stored_parameter(model, key).data_ptr() for key in places} == places
        assert list(model.state_dict()) == names
        assert [type(block.attn.proj) is nn.Linear for block in model.blocks] == [name != "cars"] * 2
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in vit().state_dict().items())


@EXECUTIONS
def test_only_the_active_adapter_is_trained(execution: str) -> None:
    model, _ = two_adapters(execution)
    superlora_cli.activate(model, "pets")
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [f"superlora.pets.factors.{key}" for key in model.superlora.named["pets"].factors]
    model(X).square().sum().backward()
    assert all((parameter.grad is not None) == (key in trained) for key, parameter in model.named_parameters())
    superlora_cli.activate(model, None)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_one_adapter_has_the_short_names() -> None:
    model = vit()
    adapter = superlora_cli.attach(model, method="lorta", rank=2)
    own = [key for key in model.state_dict() if key.startswith("superlora.")]
    assert own == [f"superlora.factors.{key}" for key in adapter.factors]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == adapter.plan.params


def test_copies_and_pickles_switch_on_their_own() -> None:
    model, outputs = two_adapters()
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert torch.equal(other(X), outputs["cars"])
        superlora_cli.activate(other, "pets")
        assert torch.equal(other(X), outputs["pets"])
        moved(other.superlora.named["pets"], 9)
        assert not torch.equal(other(X), outputs["pets"])
        superlora_cli.activate(model, "pets")
        assert torch.equal(model(X), outputs["pets"])
        superlora_cli.activate(model, "cars")


def test_a_state_dict_carries_all_adapters() -> None:
    model, outputs = two_adapters()
    other, _ = two_adapters()
    for seed, adapter in enumerate(other.superlora.named.values()):
        moved(adapter, 20 + seed)
    other.load_state_dict(model.state_dict())
    for name in ("pets", "cars"):
        superlora_cli.activate(other, name)
        assert torch.equal(other(X), outputs[name])


@EXECUTIONS
def test_gradient_checkpointing_and_autocast_work_after_switching(execution: str) -> None:
    model, _ = two_adapters(execution)
    superlora_cli.activate(model, "pets")
    model.set_grad_checkpointing(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(X).float().square().sum().backward()
    grads = [factor.grad for factor in model.superlora.named["pets"].factors.values()]
    assert all(grad is not None and grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in grads)


def test_saved_and_loaded_adapters_are_the_same_and_inspect_reads_them(tmp_path: Path, cli: Cli) -> None:
    model, outputs = two_adapters()
    for name in ("pets", "cars"):
        superlora_cli.save(model, tmp_path / f"{name}.safetensors", name=name, metrics={"accuracy": 0.5})
    fresh = vit()
    for name in ("pets", "cars"):
        superlora_cli.load(fresh, tmp_path / f"{name}.safetensors", name=name)
        assert torch.equal(fresh(X), outputs[name])
    superlora_cli.activate(fresh, "pets")
    assert torch.equal(fresh(X), outputs["pets"])
    about = cli("inspect", tmp_path / "cars.safetensors", "--json").json()
    assert about["targets"] == ["q", "o"]
    assert about["base"]["name"] == "vit_tiny_patch16_224"
    assert about["metrics"] == {"accuracy": 0.5}
    assert cli("inspect", tmp_path / "cars.safetensors").code == 0
    superlora_cli.save(fresh, tmp_path / "again.safetensors", metrics={"accuracy": 0.5})
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "pets.safetensors").read_bytes()


def test_the_command_line_says_where_an_adapter_without_recipe_is_used(tmp_path: Path, cli: Cli) -> None:
    model, _ = two_adapters()
    superlora_cli.save(model, tmp_path / "cars.safetensors")
    result = cli("eval", tmp_path / "cars.safetensors")
    assert result.code == 2
    assert "superlora_cli.load" in result.message


def test_a_trained_run_loads_on_its_base(adapter: Path) -> None:
    from superlora_cli.opening.build import build_from_file

    built = build_from_file(adapter)
    base = build_from_file(adapter)
    superlora_cli.detach(base.model)
    superlora_cli.load(base.model, adapter.parent)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(base.model(images), built.model(images))


def test_another_base_is_refused_and_left_alone(tmp_path: Path) -> None:
    model, _ = two_adapters()
    superlora_cli.save(model, tmp_path / "cars.safetensors")
    other = vit(seed=1)
    with pytest.raises(MismatchError, match="not the base"):
        superlora_cli.load(other, tmp_path / "cars.safetensors")
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert type(other.blocks[0].attn.qkv) is nn.Linear
    superlora_cli.load(other, tmp_path / "cars.safetensors", allow_base_mismatch=True)
    assert other.superlora.active == "default"
    wide = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=2)
    with pytest.raises(MismatchError, match="targets do not match"):
        superlora_cli.load(wide, tmp_path / "cars.safetensors", allow_base_mismatch=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model: superlora_cli.activate(model, "pest"), "no adapter 'pest'.*did you mean 'pets'"),
        (lambda model: superlora_cli.detach(model, "dogs"), "no adapter 'dogs'"),
        (lambda model: superlora_cli.save(model, "never.safetensors", name="dogs"), "no adapter 'dogs'"),
        (lambda model: superlora_cli.attach(model, name="pets"), "already has an adapter 'pets'"),
        (lambda model: superlora_cli.attach(model, name="a.b"), "is not a valid name"),
        (lambda model: superlora_cli.attach(model, name="factors"), "is not a valid name"),
        (lambda model: superlora_cli.attach(model, ["nowhere"], name="new"), "'nowhere' matches no weight"),
        (lambda model: superlora_cli.attach(model, rnak=2, name="new"), "unknown knob 'rnak'"),
        (lambda model: superlora_cli.attach(model, name="new", head="tail"), "'tail' matches no parameter"),
        (lambda model: superlora_cli.attach(model, ["head"], name="new", head="head"), "adapted and trained as a head"),
        (lambda model: superlora_cli.attach(model, [3], name="new"), "targets: .* is not a list of names"),
        (lambda model: superlora_cli.attach(model, name="new", head=3), "head: 3 is not a list of names"),
        (lambda model: superlora_cli.attach(model, name=3), "'3' is not a valid name"),
    ],
)
def test_invalid_calls_are_refused_and_change_nothing(wrong, message: str) -> None:
    model, outputs = two_adapters()
    with pytest.raises(UsageError, match=message):
        wrong(model)
    assert list(model.superlora.named) == ["pets", "cars"]
    assert torch.equal(model(X), outputs["cars"])


def test_a_plain_model_has_nothing_to_save_activate_or_detach() -> None:
    model = vit()
    superlora_cli.activate(model, None)
    for wrong in (
        superlora_cli.detach,
        lambda m: superlora_cli.save(m, "never"),
        lambda m: superlora_cli.activate(m, "a"),
    ):
        with pytest.raises(UsageError, match="no adapter"):
            wrong(model)


def test_merging_keeps_the_chosen_adapter_and_removes_all() -> None:
    model, outputs = two_adapters()
    superlora_cli.detach(model, "pets", merge=True)
    torch.testing.assert_close(model(X), outputs["pets"])
    assert list(model.state_dict()) == list(vit().state_dict())
    assert not any(isinstance(module, SuperLora) for module in model.modules())
    assert not model._forward_pre_hooks


def test_one_of_two_adapters_can_go() -> None:
    model, outputs = two_adapters()
    superlora_cli.detach(model, "cars")
    assert torch.equal(model(X), outputs[None])
    superlora_cli.activate(model, "pets")
    assert torch.equal(model(X), outputs["pets"])
    superlora_cli.attach(model, ["q"], "lorta", rank=1, name="cars")
    assert torch.equal(model(X), outputs[None])
    superlora_cli.detach(model, "pets")
    assert list(model.superlora.named) == ["cars"]


def test_frozen_factors_of_another_base_are_not_saved_nor_loaded(tmp_path: Path) -> None:
    model = vit()
    moved(superlora_cli.attach(model, method="lora_xs", rank=2), 0)
    superlora_cli.save(model, tmp_path / "xs.safetensors")
    with pytest.raises(MismatchError, match="not the base"):
        superlora_cli.load(vit(seed=1), tmp_path / "xs.safetensors", allow_base_mismatch=True)
    model.load_state_dict(vit(seed=1).state_dict(), strict=False)
    with pytest.raises(MismatchError, match=r"changed since the adapter was attached .load weights before"):
        superlora_cli.save(copy.deepcopy(model), tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()
    loaded = vit()
    superlora_cli.load(loaded, tmp_path / "xs.safetensors")
    superlora_cli.save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "xs.safetensors").read_bytes()


def test_a_head_belongs_to_its_adapter(tmp_path: Path) -> None:
    model, base = vit(), vit()
    plain = base(X)
    outputs = {}
    for seed, name in enumerate(["pets", "cars"]):
        moved(superlora_cli.attach(model, method="lora", rank=2, name=name, head="head"), seed)
        assert torch.equal(model.head.weight, base.head.weight)
        assert model.head.weight.requires_grad
        with torch.no_grad():
            model.head.weight.mul_(-1 - seed)
        outputs[name] = model(X)
        superlora_cli.save(model, tmp_path / f"{name}.safetensors")
    superlora_cli.activate(model, None)
    assert torch.equal(model(X), plain)
    assert not model.head.weight.requires_grad
    superlora_cli.activate(model, "pets")
    assert torch.equal(model(X), outputs["pets"])
    superlora_cli.save(model, tmp_path / "inactive.safetensors", name="cars")
    assert (tmp_path / "inactive.safetensors").read_bytes() == (tmp_path / "cars.safetensors").read_bytes()
    for name in ("pets", "cars"):
        superlora_cli.load(base, tmp_path / f"{name}.safetensors", name=name)
        assert torch.equal(base(X), outputs[name])
    superlora_cli.detach(base, "pets", merge=True)
    torch.testing.assert_close(base(X), outputs["pets"])


def test_every_row_of_a_batch_may_have_an_adapter_and_a_head_of_its_own(tmp_path: Path) -> None:
    model, outputs = two_adapters()
    other = vit()
    other.head = nn.Linear(32, 7)
    moved(superlora_cli.attach(other, method="lora", rank=2, head="head"), 5)
    superlora_cli.save(other, tmp_path / "seven.safetensors")
    superlora_cli.load(model, tmp_path / "seven.safetensors", name="seven")
    superlora_cli.activate(model, "pets")
    found = superlora_cli.mixed(model, X[[0, 1, 0, 1]], ["cars", None, "seven", "cars"])
    for row, (name, image) in zip(found, [("cars", 0), (None, 1), ("seven", 0), ("cars", 1)], strict=True):
        expected = other(X)[image] if name == "seven" else outputs[name][image]
        torch.testing.assert_close(row, expected)
        assert not row.requires_grad
    assert model.superlora.active == "pets"
    for names, message in ((["cars"], "1 names for 2 rows"), (["cars", "dogs"], "has no adapter 'dogs'")):
        with pytest.raises(UsageError, match=message):
            superlora_cli.mixed(model, X, names)
    with pytest.raises(UsageError, match="the model has no adapter"):
        superlora_cli.mixed(vit(), X, ["cars", "cars"])


@pytest.mark.parametrize("form", [lambda x: SimpleNamespace(logits=x), lambda x: {"logits": x}, lambda x: x.sum()])
def test_rows_are_split_in_logits_or_a_tensor_and_in_nothing_else(form: Callable[[Tensor], Any]) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return form(self.q(x))

    model, x = Other(), torch.ones(2, 4)
    superlora_cli.attach(model, ["q"], rank=1)
    if isinstance(form(x), SimpleNamespace):
        assert torch.equal(torch.stack(superlora_cli.mixed(model, x, ["default", None])), model.q(x))
        return
    with pytest.raises(UsageError, match="not a tensor with a row for every input"):
        superlora_cli.mixed(model, x, ["default", None])


def test_a_head_may_have_another_number_of_classes(tmp_path: Path) -> None:
    pets = vit()
    pets.head = nn.Linear(32, 7)
    superlora_cli.attach(pets, method="lora", rank=2, head="head")
    superlora_cli.save(pets, tmp_path / "pets.safetensors")
    model = vit()
    superlora_cli.load(model, tmp_path / "pets.safetensors")
    assert model(X).shape == (2, 7)
    superlora_cli.activate(model, None)
    assert model(X).shape == (2, 5)


def test_weights_trained_outside_the_adapter_are_not_lost_silently(tmp_path: Path) -> None:
    model = vit()
    superlora_cli.attach(model, method="lora", rank=2)
    model.norm.weight.requires_grad_(True)
    with pytest.raises(UsageError, match=r"norm.weight: is trained but would not be saved"):
        superlora_cli.save(model, tmp_path / "lost.safetensors")
    assert not list(tmp_path.iterdir())


def test_metrics_may_be_numbers_and_strings_of_any_library(tmp_path: Path) -> None:
    model, _ = two_adapters()
    metrics = {"accuracy": np.float32(0.1), "n": np.int64(3), "by class": [np.float64(0.5), 1], "set": "test"}
    superlora_cli.save(model, tmp_path / "numpy.safetensors", metrics=metrics)
    same = {"accuracy": 0.1, "n": 3, "by class": [0.5, 1], "set": "test"}
    superlora_cli.save(model, tmp_path / "plain.safetensors", metrics=same)
    assert (tmp_path / "numpy.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    for wrong in (torch.tensor(0.5), np.ones(2), {"deep": torch.ones(2)}, {1: 0, "a": 1}):
        with pytest.raises(UsageError, match="metrics: loss: is "):
            superlora_cli.save(model, tmp_path / "never.safetensors", metrics={"loss": wrong})
    assert not (tmp_path / "never.safetensors").exists()


def test_importing_the_package_imports_no_torch() -> None:
    code = """if True:
        import sys, superlora_cli
        assert "torch" not in sys.modules
        superlora_cli.attach
        assert "torch" in sys.modules
        assert not {"timm", "typer", "yaml"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
    with pytest.raises(AttributeError, match="no attribute 'attatch'"):
        _ = superlora_cli.attatch
