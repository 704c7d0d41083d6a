"""What people wrap around a model works on an adapted one: checkpointing, autocast, torch.compile, DDP."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from superlora_cli.adapter.attach import SuperLora, attach, detach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import RunError
from superlora_cli.models.targets import expand

METHODS = ("lora", "lokr", "lorta", "dense", "loha")
X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def vit(method: str) -> tuple[nn.Module, SuperLora]:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )
    knobs = {"projection": "linear", "ratio": 0.5} if method == "lorta" else {}
    rank = {} if method == "dense" else {"rank": 2}
    adapter = attach(model, expand(model, ["q", "v"]), AdapterConfig.from_knobs(method, **rank, **knobs))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
    return model, adapter


def gradients(model: nn.Module, adapter: SuperLora) -> tuple[Tensor, dict[str, Tensor]]:
    adapter.zero_grad(set_to_none=True)
    output = model(X)
    output.square().mean().backward()
    return output.detach(), {name: p.grad.clone() for name, p in adapter.factors.items() if p.grad is not None}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, grad in one.items():
        torch.testing.assert_close(grad, other[name], msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_the_same_gradients(method: str) -> None:
    model, adapter = vit(method)
    output, plain = gradients(model, adapter)
    model.set_grad_checkpointing(True)
    recomputed, grads = gradients(model, adapter)
    assert torch.equal(output, recomputed)
    assert_same(plain, grads)
    adapter.zero_grad(set_to_none=True)
    with adapter.one_step():
        model(X).square().mean().backward()
    assert_same(plain, {name: p.grad for name, p in adapter.factors.items()})


@pytest.mark.parametrize("method", METHODS)
def test_autocast_bf16_is_near_float32_and_keeps_factor_gradients_in_float32(method: str) -> None:
    model, adapter = vit(method)
    output, _ = gradients(model, adapter)
    adapter.zero_grad(set_to_none=True)
    with adapter.one_step(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(X)
        low.float().square().mean().backward()
    assert (low.float() - output).norm() / output.norm() < 0.02
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.factors.values())
    assert all(torch.isfinite(p.grad).all() for p in adapter.factors.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[:3])
def test_torch_compile_gives_the_same_outputs_and_gradients(method: str) -> None:
    torch._dynamo.reset()
    model, adapter = vit(method)
    output, plain = gradients(model, adapter)
    compiled = torch.compile(model, backend="aot_eager")
    found, grads = gradients(compiled, adapter)
    torch.testing.assert_close(found, output)
    assert_same(plain, grads)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.mul_(1.5)
        torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize("method", METHODS)
def test_ddp_wrapping_gives_the_same_gradients(method: str) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, adapter = vit(method)
        output, plain = gradients(model, adapter)
        found, grads = gradients(DistributedDataParallel(model), adapter)
        assert torch.equal(output, found)
        assert_same(plain, grads)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        with pytest.raises(RunError, match="takes the factors for unused"), adapter.one_step():
            wrapped(X)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_only_target_rows_take_part(method: str) -> None:
    model, adapter = vit(method)
    gradients(model, adapter)
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("superlora."))
    wide = model.blocks[0].attn.qkv
    assert torch.equal(wide.weight[32:64], wide._parameters["weight"][32:64])
    assert not torch.equal(wide.weight[:32], wide._parameters["weight"][:32])


def test_code_that_reads_the_weight_itself_sees_the_update() -> None:
    """timm's BEiT passes `self.qkv.weight` to a functional call instead of calling the layer."""
    torch.manual_seed(0)
    model = timm.create_model(
        "beit_base_patch16_224", img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=2, num_classes=3
    )
    image = torch.randn(1, 3, 32, 32)
    before = model(image)
    adapter = attach(model, expand(model, ["q", "v"]), AdapterConfig.from_knobs("lora", rank=2))
    assert torch.equal(model(image), before)
    with torch.no_grad():
        for factor in adapter.factors.values():
            nn.init.normal_(factor)
    assert not torch.equal(model(image), before)
    model(image).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.factors.values())


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_are_adapted_and_merged_like_any_weight(kernel: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, kernel), nn.ReLU(), nn.Conv2d(6, 8, 1))
    targets = expand(model, ["0", "2[2:5]"])
    assert [target.shape for target in targets] == [(6, 4, kernel, kernel), (3, 6, 1, 1)]
    images, base = torch.randn(2, 4, 5, 5), model[2].weight.detach().clone()
    plain = model(images)
    adapter = attach(model, targets, AdapterConfig.from_knobs("lorta", rank=2))
    assert torch.equal(model(images), plain)
    with torch.no_grad():
        for factor in adapter.factors.values():
            nn.init.normal_(factor)
    adapted = model(images)
    adapted.sum().backward()
    assert all(factor.grad is not None for factor in adapter.factors.values())
    detach(model, merge=True)
    torch.testing.assert_close(model(images), adapted)
    assert torch.equal(model[2].weight[:2], base[:2])
    assert torch.equal(model[2].weight[5:], base[5:])
