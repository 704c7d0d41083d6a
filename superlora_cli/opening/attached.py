"""Attach a stored adapter to an existing model."""

from __future__ import annotations

from torch import nn

from superlora_cli.adapter import attach as adapters
from superlora_cli.adapter import store
from superlora_cli.adapter.attach import DEFAULT
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.module import SuperLora
from superlora_cli.adapter.rollback import all_or_nothing
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.models.checkpoints import digest_base
from superlora_cli.models.targets import expand_stored


def attach_stored(
    model: nn.Module,
    stored: StoredAdapter,
    *,
    where: str,
    name: str = DEFAULT,
    allow_mismatch: bool = False,
    other_classes: bool = False,
) -> SuperLora:
    """Attach a stored adapter to `model`, active and trainable, with its head and the other tensors trained with it.

    Args:
        where: the file, for messages.
        name: of the adapter on this model.
        allow_mismatch: accept a base whose target weights are not bit for bit those of training, unless ΔW depends
            on it.
        other_classes: accept a head for another number of classes than the model's.

    Raises:
        UsageError: a base that cannot be adapted, or a name that is taken. MismatchError: adapter and base do not
            belong together. The model is then unchanged.
    """
    targets = expand_stored(model, stored)
    store.check_targets(targets, stored, where=where)
    store.check_factors(plan(stored.config, [target.flat for target in targets]), stored, where=where)
    known = dict(model.named_parameters())
    adapters.check(model, targets, [key for key in stored.beside if key in known])
    digest = digest_base(model, targets, stored.beside)
    store.check_digest(digest, stored, where=where, allow_mismatch=allow_mismatch)
    store.check_beside(model, stored, where=where, other_classes=other_classes)
    head, also = list(stored.head), list(stored.also)
    with all_or_nothing(model):
        adapter = adapters.attach(model, targets, stored.config, name=name, head=head, also=also)
        adapter.patterns = stored.patterns
        adapter.base_digest = digest if stored.config.reads_base else None
        store.restore(adapter, stored, where=where)
        for key, tensor in stored.beside.items():
            parameter = stored_parameter(model, key)
            parameter.data = tensor.to(parameter)
    return adapter
