"""What cannot be adapted is refused by name, and a refusal or a failure leaves the model exactly as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import superlora_cli
from superlora_cli.adapter import attach as attaching
from superlora_cli.adapter.attach import SuperLora
from superlora_cli.errors import RunError, UsageError

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.v(torch.tanh(self.q(x)))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.o = Net(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.inside(x))


class Packed(nn.Parameter):
    """As libraries of quantised weights have them: a class of its own, around bytes or around what they are kept in."""


def net(change: Callable[[Net], object] = lambda made: None) -> Net:
    torch.manual_seed(0)
    made = Net()
    change(made)
    return made


def attached(model: nn.Module, targets: str = "q", **more: Any) -> SuperLora:
    return superlora_cli.attach(model, targets, "lora", rank=2, **more)


def moved(adapter: SuperLora, scale: float = 0.3) -> None:
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.normal_(std=scale)


def state(model: nn.Module) -> dict[str, Any]:
    """All that a change of a model could touch."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = (
            type(module),
            sorted(vars(module)),
            [len(hooks) for key, hooks in vars(module).items() if "hooks" in key],
        )
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            version = None if tensor is None or is_lazy(tensor) or tensor.is_inference() else tensor._version
            found[f"{name}.{own}"] = id(tensor), version, tensor is not None and tensor.requires_grad
    return found


def packed(dtype: torch.dtype, *shape: int, kind: Callable[..., Any] = nn.Parameter) -> Callable[[Net], object]:
    return lambda model: setattr(model.q, "weight", kind(torch.zeros(shape, dtype=dtype), requires_grad=False))


def overlapping(model: Net) -> None:
    whole = torch.randn(16, 8)
    model.q.weight, model.v.weight = nn.Parameter(whole[:8]), nn.Parameter(whole[4:12])


CHANGES: dict[str, tuple[Callable[[Net], object], str]] = {
    "tied": (lambda m: setattr(m.v, "weight", m.q.weight), r"q\.weight: shares its values with v\.weight"),
    "tied to an embedding": (
        lambda m: (setattr(m, "e", nn.Embedding(8, 8)), setattr(m.e, "weight", m.q.weight)),
        r"q\.weight: shares its values with e\.weight",
    ),
    "in a list": (lambda m: setattr(m, "kept", nn.ParameterList([m.q.weight])), r"shares its values with kept\.0"),
    "by another name": (lambda m: setattr(m.q, "alias", m.q.weight), r"shares its values with q\.alias"),
    "a buffer": (lambda m: m.register_buffer("b", m.q.weight.data), r"q\.weight: shares its values with b"),
    "views that overlap": (overlapping, r"q\.weight: shares its values with v\.weight"),
    "an expanded view": (lambda m: setattr(m.q, "weight", nn.Parameter(torch.ones(8).expand(8, 8))), "expanded view"),
    "bytes": (packed(torch.uint8, 32, 1), r"q\.weight: is stored as uint8"),
    "int8": (packed(torch.int8, 8, 8), "is stored as int8"),
    "float8": (packed(torch.float8_e4m3fn, 8, 8), "is stored as float8_e4m3fn"),
    "complex": (packed(torch.complex64, 8, 8), "is stored as complex64"),
    "bytes in bfloat16": (packed(torch.bfloat16, 16, 1), r"has the shape \[16, 1\] in a layer of 8 × 8"),
    "packed, on meta": (packed(torch.uint8, 32, 1, kind=lambda data, **_: Packed(data.to("meta"), False)), "no values"),
    "normed": (lambda m: weight_norm(m.q), r"q\.weight: is computed from other tensors"),
    "spectrally normed": (lambda m: spectral_norm(m.q), "is computed from other tensors"),
    "pruned": (lambda m: prune.l1_unstructured(m.q, "weight", 0.5), "is computed from other tensors"),
    "parametrised": (lambda m: parametrizations.orthogonal(m.q), "is computed from other tensors"),
    "lazy": (lambda m: setattr(m, "q", nn.LazyLinear(8)), "has no shape before the first forward"),
    "on meta": (lambda m: m.to("meta"), "has no values yet"),
    "partly on meta": (lambda m: m.q.to("meta"), "has no values yet"),
    "empty": (lambda m: setattr(m, "q", nn.Linear(8, 0)), "has no elements"),
    "something called superlora": (lambda m: setattr(m, "superlora", nn.Linear(2, 2)), r"model\.superlora: .*rename"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_adapted_is_refused_and_left_alone(change: Callable[[Net], object], message: str) -> None:
    model = net(change)
    before = state(model)
    with pytest.raises(UsageError, match=message):
        attached(model)
    assert state(model) == before


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = net()
    with pytest.raises(UsageError, match=r"created under torch\.inference_mode"):
        attached(model)


def test_attaching_in_inference_mode_makes_factors_that_can_be_trained() -> None:
    model = net()
    with torch.inference_mode():
        attached(model)
    model(X).sum().backward()


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [(nn.DataParallel, "DataParallel"), (lambda model: torch.compile(model, backend="eager"), "OptimizedModule")],
)
def test_a_wrapper_is_named(wrap: Callable[[nn.Module], nn.Module], kind: str) -> None:
    with pytest.raises(UsageError, match=f"already wrapped by {kind} .attach to the module inside"):
        attached(wrap(net()))


def test_a_head_that_cannot_be_trained_is_refused() -> None:
    model = net(packed(torch.int8, 8, 8))
    before = state(model)
    with pytest.raises(UsageError, match=r"q\.weight: is stored as int8"):
        attached(model, "v", head="q")
    assert state(model) == before


def others(model: Net) -> None:
    model.c, model.d = weight_norm(nn.Conv1d(2, 2, 3)), spectral_norm(nn.Linear(2, 2))
    model.e, model.f = nn.Linear(3, 3), parametrizations.orthogonal(nn.Linear(4, 4))
    model.g, model.h = nn.LazyLinear(3), nn.LazyConvTranspose2d(3, 2)
    prune.l1_unstructured(model.e, "weight", 0.5)
    model.i = nn.Linear(8, 8)
    model.i.weight = Packed(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)


def views(model: Net) -> None:
    whole = torch.randn(16, 8)
    model.q.weight, model.v.weight = nn.Parameter(whole[:8]), nn.Parameter(whole[8:])


WORKS: dict[str, Callable[[Net], object]] = {
    "such layers beside the targets": others,
    "views side by side": views,
    "a transposed weight": lambda m: setattr(m.q, "weight", nn.Parameter(torch.randn(8, 8).t())),
    "a module under two names": lambda m: setattr(m, "again", m.q),
    "a forward of its own": lambda m: setattr(m.q, "forward", lambda x, own=m.q.forward: 2 * own(x)),
    "a parametrised bias": lambda m: parametrize.register_parametrization(m.q, "bias", nn.Identity()),
    "a frozen base": lambda m: m.q.requires_grad_(False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("execution", ["factored", "materialised"])
@pytest.mark.parametrize("change", WORKS.values(), ids=WORKS)
def test_what_can_be_adapted_is_merged_to_what_it_computed(change: Callable[[Net], object], execution: str) -> None:
    model = net(change)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = model(X)
    adapter = attached(model, execution=execution)
    torch.testing.assert_close(model(X), plain)
    moved(adapter)
    adapted = model(X)
    adapted.sum().backward()
    assert all(factor.grad is not None for factor in adapter.factors.values())
    superlora_cli.detach(model, merge=True)
    assert not torch.allclose(model(X), plain, atol=1e-3)
    torch.testing.assert_close(model(X), adapted)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable


def test_one_model_inside_another_is_adapted_at_one_of_them() -> None:
    for first, second in [("inside", ""), ("", "inside")]:
        model = Outer()
        own = {"": "inside.q", "inside": "q"}
        attached(model.get_submodule(first), own[first])
        before = state(model)
        with pytest.raises(UsageError, match=r"already adapted|its own adapters"):
            attached(model.get_submodule(second), own[second])
        assert state(model) == before
    superlora_cli.activate(model, None)
    attached(model.inside)
    before = state(model)
    with pytest.raises(UsageError, match=r"inside\.q\.weight: is already adapted"):
        superlora_cli.activate(model, "default")
    assert state(model) == before
    superlora_cli.detach(model.inside)
    superlora_cli.activate(model, "default")


def test_an_adapter_on_layers_that_were_replaced_says_so() -> None:
    model = net()
    attached(model)
    model.q = nn.Linear(8, 8)
    before = state(model)
    for wrong in (
        superlora_cli.detach,
        lambda m: superlora_cli.activate(m, None),
        lambda m: superlora_cli.save(m, "never.safetensors"),
    ):
        with pytest.raises(UsageError, match="q: is not the layer that was adapted"):
            wrong(model)
    assert state(model) == before


def two(model: nn.Module) -> tuple[SuperLora, SuperLora]:
    one, other = attached(model, "q", name="a", head="v"), attached(model, "q", name="b")
    superlora_cli.activate(model, "a")
    moved(one)
    return one, other


def test_a_merge_that_fails_changes_nothing() -> None:
    model = net()
    one, other = two(model)
    one.factors["b0_k1_A1"].requires_grad_(False)
    with torch.no_grad():
        next(iter(other.factors.values())).fill_(torch.nan)
    before, adapted = state(model), model(X)
    with pytest.raises(RunError, match="not finite"):
        superlora_cli.detach(model, "b", merge=True)
    assert state(model) == before
    assert model.superlora.active == "a"
    assert torch.equal(model(X), adapted)


@pytest.mark.parametrize("held", [False, True])
def test_whatever_fails_while_attaching_leaves_the_model_as_it_was(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    calls = []
    handle = model.register_forward_pre_hook(lambda module, args: calls.append(module))
    if held:
        two(model)
    before, output = state(model), model(X)
    put_on = attaching.put_on

    def fails(*args: Any) -> None:
        put_on(*args)
        raise MemoryError

    monkeypatch.setattr(attaching, "put_on", fails)
    with pytest.raises(MemoryError):
        attached(model, "v" if not held else "q", name="new")
    assert state(model) == before
    assert torch.equal(model(X), output)
    handle.remove()
    model(X)
    assert len(calls) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["tied", "int8", "normed", "on meta"])
def test_a_file_is_not_loaded_onto_what_cannot_be_adapted(kind: str, tmp_path: Path) -> None:
    model = net()
    attached(model)
    superlora_cli.save(model, tmp_path / "q.safetensors")
    change, message = CHANGES[kind]
    other = net(change)
    before = state(other)
    with pytest.raises(UsageError, match=message):
        superlora_cli.load(other, tmp_path / "q.safetensors", allow_base_mismatch=True)
    assert state(other) == before


def test_a_file_that_does_not_fit_in_the_end_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    moved(attached(model))
    superlora_cli.save(model, tmp_path / "q.safetensors")
    fresh = net()
    before = state(fresh)
    monkeypatch.setattr(superlora_cli.api.store, "restore", lambda *args, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        superlora_cli.load(fresh, tmp_path / "q.safetensors")
    assert state(fresh) == before
