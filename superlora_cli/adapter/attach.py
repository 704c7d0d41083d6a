"""Attach adapters to any `nn.Module`: target weights read as W + ΔW, everything else stays unchanged.

    adapter = attach(model, targets, AdapterConfig.from_knobs("lorta"))
    ...                        # adapter is a module with few parameters: train it with any loop
    detach(model, merge=True)  # plain modules again, with or without ΔW

A model holds any number of named adapters, in `model.superlora`. At most one is active: only its layers differ from
plain ones, and only its parameters are trainable. `activate` switches between them without copying anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from superlora_cli.adapter import preflight
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.layers import by_module, layers_of, put_on, stored_parameter, take_off
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.packed import is_packed, is_plain_linear, rows_of
from superlora_cli.adapter.rollback import all_or_nothing
from superlora_cli.adapter.scaling import settled
from superlora_cli.adapter.statistics import hold_statistics, release_statistics
from superlora_cli.adapter.targets import Target
from superlora_cli.errors import UsageError, did_you_mean

DEFAULT = "default"


class Adapters(nn.Module):
    """The adapters on one model: `model.superlora`.

    In the model's state dict the tensors of `default` are `superlora.factors.*`, those of `pets` are
    `superlora.pets.factors.*`. A head trained with an adapter has its names in the base while the adapter is active.

    Attributes:
        named: the adapters by name.
        active: the name of the adapter in use, None for the plain base.
        trainable: names of the base's parameters that were trainable before the first adapter was attached.
    """

    def __init__(self, trainable: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.trainable = trainable
        self.named: dict[str, SuperLora] = {}
        self.active: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        """The identity: an `nn.Sequential` that carries adapters calls this like any other child."""
        return input

    def extra_repr(self) -> str:
        return f"names={list(self.named)}, active={self.active!r}"

    def get(self, name: str | None = None) -> SuperLora:
        """The adapter `name`, or the active one.

        Raises:
            UsageError: no adapter has that name (the hint suggests the closest), or none is active.
        """
        name = self.active if name is None else name
        if name is None:
            raise UsageError("no adapter is active", hint="activate one of " + ", ".join(self.named))
        if name not in self.named:
            hint = did_you_mean(name, self.named) or "it has " + ", ".join(self.named)
            raise UsageError(f"the model has no adapter '{name}'", hint=hint)
        return self.named[name]

    def add(self, name: str, adapter: SuperLora) -> None:
        """Register an adapter, not active yet.

        Raises:
            UsageError: the name is taken or invalid.
        """
        if name in self.named:
            raise UsageError(
                f"the model already has an adapter '{name}'", hint="choose another name, or detach it first"
            )
        if not isinstance(name, str) or name in ("", "factors") or "." in name or hasattr(self, name):
            raise UsageError(f"'{name}' is not a valid name for an adapter", hint="use a word such as 'pets'")
        self.named[name] = adapter
        if name == DEFAULT:
            self.factors = adapter.factors
        else:
            self.add_module(name, adapter)

    def remove(self, name: str) -> None:
        """Forget an adapter that is not active."""
        del self.named[name]
        delattr(self, "factors" if name == DEFAULT else name)


class _Hook:
    """A hook on calls of the adapted model; a class, so that the model stays picklable."""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters


class _Before(_Hook):
    def __call__(self, module: nn.Module, args: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            from superlora_cli.adapter.compiling import refuse_fullgraph

            refuse_fullgraph()
        if self.adapters.active is not None:
            adapter = self.adapters.get()
            adapter.sharing.begin_call(adapter)


class _After(_Hook):
    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        if self.adapters.active is not None:
            self.adapters.get().sharing.end_call()


def check(model: nn.Module, targets: Sequence[Target], beside: Sequence[str], *, shapes_only: bool = False) -> None:
    """Refuse what `attach` could not adapt, or could not train (`beside`); raises as `preflight.check`."""
    present = adapters_of(model)
    own = list(present.named.values()) if present else []
    nested = [at for at, module in model.named_modules() if at and adapters_of(module)]
    preflight.check(model, targets, beside, own, nested=nested, shapes_only=shapes_only)


def attach(
    model: nn.Module,
    targets: Sequence[Target],
    config: AdapterConfig,
    *,
    name: str = DEFAULT,
    head: Sequence[str] = (),
    also: Sequence[str] = (),
    shapes_only: bool = False,
) -> SuperLora:
    """Freeze `model`, adapt its `targets`, and return the adapter: active, with ΔW = 0.

    >>> model = nn.Sequential(nn.Linear(768, 768), nn.Linear(768, 10))
    >>> targets = [Target("0", 256, 512, (256, 768), False)]  # rows 256 to 511 of its first weight
    >>> adapter = attach(model, targets, AdapterConfig.from_knobs("lora", rank=4))
    >>> {name: tuple(factor.shape) for name, factor in adapter.factors.items()}
    {'b0_k1_A1': (1, 1, 256, 4), 'b0_k1_A2': (1, 1, 768, 4)}
    >>> [tuple(delta.shape) for delta in adapter.compute()], model(torch.ones(2, 768)).shape
    ([(256, 768)], torch.Size([2, 10]))

    Args:
        name: of the adapter, unique in this model.
        head: names of parameters that are trained with this adapter, which gets its own copies of them.
        also: the same for the tensors that the knob `also` selects in this model.
        shapes_only: accept a model without values, on the meta device.

    Raises:
        UsageError: the knobs do not fit the targets, a target or the model cannot be adapted (`preflight`), or the
            model already has an adapter of this name. The model is unchanged after this or any other error.
    """
    check(model, targets, [*head, *also], shapes_only=shapes_only)
    _refuse_knobs(model, targets, config)
    present = adapters_of(model)
    with torch.inference_mode(False), all_or_nothing(model):
        modules = dict(model.named_modules())
        layers = [modules[name] for name in (layers_of(targets) if config.activates else by_module(targets))]
        packed = [is_packed(layer) for layer in layers]
        plain = all(is_plain_linear(layer) or own for layer, own in zip(layers, packed, strict=True))
        base: Sequence[Tensor] = rows_of(model, targets)
        base = list(base) if config.multiplies else base  # which it holds
        adapter = SuperLora(settled(config, targets, base), targets, plain=plain, packed=any(packed), base=base)
        weights = [stored_parameter(model, f"{target.module}.weight") for target in targets]
        adapter.to(weights[0].device if weights else next(model.parameters()).device)
        adapters = present or Adapters(frozenset(k for k, each in model.named_parameters() if each.requires_grad))
        if present is None:
            model.superlora = adapters
            model.register_forward_pre_hook(_Before(adapters))
            model.register_forward_hook(_After(adapters))
            hold_statistics(model)
        adapters.add(name, adapter)
        activate(model, None)
        adapter.head, adapter.also = (
            {key: stored_parameter(model, key).detach().clone() for key in names} for names in (head, also)
        )
        for parameter in model.parameters():
            parameter.requires_grad = False  # an uninitialised one has no requires_grad_()
        activate(model, name)
    return adapter


def _refuse_knobs(model: nn.Module, targets: Sequence[Target], config: AdapterConfig) -> None:
    """Refuse knobs that need the numbers of a weight, or gradients of them, where it is packed."""
    asking = f"projection: {config.projection}" if config.places else "init: gradient"
    reasons = {
        f"multiply: {config.multiply}": (config.multiplies, "ΔW would be a product with all its numbers"),
        asking: (config.informed == "gradients", "it gets no gradient"),
    }
    packed = [target.name for target in targets if is_packed(model.get_submodule(target.module))]
    for knob, (applies, why) in reasons.items():
        if applies and packed:
            hint = f"leave out {knob}, or load the base without quantisation"
            raise UsageError(f"is quantised: {why} ({knob})", where=f"{packed[0]}.weight", hint=hint)


def activate(model: nn.Module, name: str | None) -> None:
    """Make the model use the adapter `name`, or no adapter where `name` is None.

    Only the parameters of the active adapter (with its head and `also`) are trainable; the base is not copied.

    Raises:
        UsageError: the model has no adapter of this name, another module's adapter is on one of its layers, or its
            layers were replaced. The model is unchanged then.
    """
    adapters = adapters_of(model)
    if adapters is None:
        if name is None:
            return
        raise UsageError(f"the model has no adapter '{name}'", hint="attach or load it first")
    wanted = None if name is None else adapters.get(name)
    if adapters.active == name:
        return
    if wanted is not None:
        preflight.check_free(model, wanted, list(adapters.named.values()))
    if adapters.active is not None:
        preflight.check_on(model, adapters.get())
        take_off(model, adapters.get())
    adapters.active = name
    if wanted is not None:
        put_on(model, wanted)


def detach(model: nn.Module, name: str | None = None, *, merge: bool = False) -> None:
    """Remove the adapter `name` from the model, or all adapters. After the last one, the base's parameters that were
    trainable before the first are trainable again.

    Args:
        merge: keep ΔW, the head and `also` of `name` (or of the active adapter) in the base's weights. All adapters are
            removed then, since the others belong to the unmerged base.

    Raises:
        UsageError: no adapter of this name, none to merge, its layers were replaced, it has no ΔW to merge
            (`activation`), or a weight to merge into is quantised. RunError: merging would write NaN or Inf. The model
            is unchanged then, with the same active adapter.
    """
    adapters = adapters_of(model)
    if adapters is None:
        raise UsageError("the model has no adapter", hint="attach or load one first")
    if name is not None or merge:
        chosen = adapters.get(name)
    if adapters.active is not None:
        preflight.check_on(model, adapters.get())
    with all_or_nothing(model):
        if merge:
            activate(model, name or adapters.active)
            take_off(model, chosen, merge=True)
            adapters.active = None
        leaving = list(adapters.named) if merge or name is None else [name]
        if adapters.active in leaving:
            activate(model, None)
        for each in leaving:
            adapters.remove(each)
        if not adapters.named:
            for hooks in (model._forward_pre_hooks, model._forward_hooks):
                for number in [number for number, hook in hooks.items() if isinstance(hook, _Hook)]:
                    del hooks[number]
            release_statistics(model)
            del model.superlora
            for key, parameter in model.named_parameters():
                if key in adapters.trainable:
                    parameter.requires_grad = True


def settle(model: nn.Module) -> None:
    """Merge the active adapter, which makes a model faster that is only used from now on; if it cannot be, leave it."""
    adapters = adapters_of(model)
    if adapters is not None and not (adapters.get().packed or adapters.get().config.activates):
        detach(model, merge=True)


def adapters_of(model: nn.Module) -> Adapters | None:
    """The adapters on a model, None if nothing is attached."""
    found = model._modules.get("superlora")
    return found if isinstance(found, Adapters) else None
