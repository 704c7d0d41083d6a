"""Estimate the memory of one training step without allocating it.

The step runs on tensors that have shapes but no values (torch's fake tensors), and the bytes of all live storages are
summed through the forward pass, the backward pass and the optimizer. Temporary memory inside an operator is not seen;
a compiled model may need less, and kernels on a GPU may need more.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from superlora_cli.adapter.attach import adapters_of
from superlora_cli.adapter.hadamard import forget_blocks
from superlora_cli.adapter.prng import undrawn
from superlora_cli.models.recomputing import recompute

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection
    from superlora_cli.training.local import Local

Batch = TypeVar("Batch")

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def step_memory(
    model: nn.Module,
    train: TrainSection,
    *,
    batch: Callable[[], Batch],
    loss: Callable[[Batch], Tensor],
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    local: Local | None = None,
    step: int = 0,
    evaluates: Callable[[], object] | None = None,
    beside: int = 0,
) -> dict[str, int]:
    """Memory in bytes of a training step of `model`, which has shapes only (meta device) and is unusable afterwards.

    Args:
        batch: creates a batch on torch's default device.
        loss: the loss of `model` on a batch.
        optimizer: creates the optimizer of the trained parameters.
        local: the groups of layers that are trained one after another; it is the turn of the one of `step`.
        evaluates: does the largest batch of an evaluation, whose memory may be the peak.
        beside: bytes of frozen weights beside the model, such as a teacher's; they count as the base's.

    Returns:
        base: weights and buffers of the base, including its head.
        adapter: the factors, and the gradients, optimizer state and moving average of everything trained.
        updates: ΔW and its gradient if it is materialised, and frozen tensors of a projection.
        activations: what one forward pass stores for its backward pass.
        total: the peak, including the batch, also of an evaluation where that is estimated.
    """
    adapters = adapters_of(model)
    adapter = adapters.get() if adapters else None
    if train.gradient_checkpointing:
        recompute(model)
    with _without_values() as ledger:
        give_storages(model)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        base = ledger.live - (_bytes(adapter.parameters()) if adapter else 0)
        average = [parameter.clone() for parameter in trained if train.ema is not None]
        own = trained if local is None else _of_this_turn(trained, local, step)
        learner = optimizer(own)
        for parameter in own:
            parameter.grad = torch.zeros_like(parameter)
        learner.step()  # creates the optimizer's state, so that the next step is like any later one
        learner.zero_grad(set_to_none=True)
        adapted, images = ledger.live - base, batch()
        before = ledger.live
        with adapter.one_step() if adapter else nullcontext():
            for _ in range(min(train.accumulate, 2)):  # from the second pass on, gradients exist throughout
                at = ledger.live
                with _precision(train):
                    result = loss(images)
                activations = ledger.live - at
                result.backward()
                del result
            gradients = _bytes(parameter.grad for parameter in trained if parameter.grad is not None)
            updates = ledger.live - before - gradients
        if local is not None:
            local.collect()
        learner.step()
        if evaluates is not None:
            learner.zero_grad(set_to_none=True)
            del images
            model.eval()
            with torch.no_grad(), _precision(train):
                evaluates()
    del average
    return {
        "base": base + beside,
        "adapter": adapted + _bytes(trained),
        "updates": updates,
        "activations": activations,
        "total": ledger.peak + beside,
    }


def give_storages(model: nn.Module) -> None:
    """Move a model from the meta device to the CPU, inside `FakeTensorMode`: its tensors still have no values.

    One module at a time, since torch cannot move one twice that is in two places.
    """
    for module in model.modules():
        module.to_empty(device="cpu", recurse=False)


def _precision(train: TrainSection) -> torch.autocast:
    return torch.autocast("cpu", AUTOCAST.get(train.precision), enabled=train.precision in AUTOCAST)


def _of_this_turn(trained: list[nn.Parameter], local: Local, step: int) -> list[nn.Parameter]:
    """The trained parameters, of the adapter only those whose turn it is."""
    factors = {id(factor) for factor in local.adapter.factors.values()}
    beside = [parameter for parameter in trained if id(parameter) not in factors]
    return [*local.enter(step).parameters.values(), *beside]


class Ledger(TorchDispatchMode):
    """The bytes of all live storages, updated by every operator.

    Attributes:
        live: bytes now.
        peak: most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[weakref.ref[Any], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter((args, kwargs, result)):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = weakref.ref(storage, self._forget)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()

    def _forget(self, key: weakref.ref[Any]) -> None:
        self.live -= self._sizes.pop(key)


@contextmanager
def _without_values() -> Iterator[Ledger]:
    """Inside, new tensors have no values and are entered in the ledger."""
    with warnings.catch_warnings(), undrawn(), FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        forget_blocks()
        try:
            yield ledger
        finally:
            forget_blocks()  # those created inside have no values either


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
