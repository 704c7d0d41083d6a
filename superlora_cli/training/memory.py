"""What one training step needs in memory, found without that memory.

The step is made on tensors that have a shape and no values (torch's fake tensors), and the bytes of all storages that
are alive are added up as it goes, through the forward pass, the backward pass and the optimizer. What an operator
holds for itself while it runs is not seen; a compiled model may need less, and a GPU's own kernels may need more.
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

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection

Batch = TypeVar("Batch")

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def step_memory(
    model: nn.Module,
    train: TrainSection,
    *,
    batch: Callable[[], Batch],
    loss: Callable[[Batch], Tensor],
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
) -> dict[str, int]:
    """Bytes of a training step of `model`, which has shapes only (meta device) and is of no use afterwards.

    Args:
        batch: makes one, on torch's default device.
        loss: of `model` on a batch.
        optimizer: of the parameters that are trained.

    Returns:
        base: weights and buffers of the base, its head included.
        adapter: the factors, and of all that is trained the gradients, the optimizer's state and the moving average.
        updates: ΔW and its gradient where it is materialised, and what is frozen of a projection.
        activations: what one forward pass keeps for its backward pass.
        total: the most that is alive at one time, the batch included.
    """
    adapters = adapters_of(model)
    adapter = adapters.get() if adapters else None
    if train.gradient_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    with _without_values() as ledger:
        model.to_empty(device="cpu").train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        base = ledger.live - (_bytes(adapter.parameters()) if adapter else 0)
        average = [parameter.clone() for parameter in trained if train.ema is not None]
        learner = optimizer(trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        learner.step()  # the first step makes the optimizer's state: what follows is any later one
        learner.zero_grad(set_to_none=True)
        adapted, images = ledger.live - base, batch()
        before = ledger.live
        with adapter.one_step() if adapter else nullcontext():
            for _ in range(min(train.accumulate, 2)):  # from the second pass on there are gradients all the while
                at = ledger.live
                with torch.autocast("cpu", AUTOCAST.get(train.precision), enabled=train.precision in AUTOCAST):
                    result = loss(images)
                activations = ledger.live - at
                result.backward()
                del result
            gradients = _bytes(parameter.grad for parameter in trained if parameter.grad is not None)
            updates = ledger.live - before - gradients
        learner.step()
    del average
    return {
        "base": base,
        "adapter": adapted + _bytes(trained),
        "updates": updates,
        "activations": activations,
        "total": ledger.peak,
    }


class Ledger(TorchDispatchMode):
    """The bytes of all storages that are alive, brought up to date by every operator.

    Attributes:
        live: now.
        peak: at most, so far.
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
    """Inside, new tensors have no values, and are written in the ledger."""
    with warnings.catch_warnings(), undrawn(), FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        forget_blocks()
        try:
            yield ledger
        finally:
            forget_blocks()  # those made inside have no values either


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
