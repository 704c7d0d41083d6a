"""Which updates a layer gets: those of an open scope, or new ones.

Computing ΔW for every layer would be slow, and changes of the factors since it was computed cannot be detected: writes
through `.data`, as by fused and 8-bit optimizers and weight averaging, leave no trace. So updates are shared only
within scopes that have a beginning and an end, innermost first:

- `Call`, a call of the adapted model: opened and closed by its hooks;
- `Step`, an optimizer step, and `Kept`, while the factors do not change: opened by the caller (see `SuperLora`);
- a backward pass that recomputes layers (gradient checkpointing).

A scope belongs to its thread and to the tensors it was opened with: `torch.func.functional_call` uses others.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from superlora_cli.adapter.updates import Update, on_other_tensors
from superlora_cli.errors import RunError


class Maker(Protocol):
    """The source of updates: an adapter."""

    def trained(self) -> tuple[Tensor, ...]:
        """Its factors."""

    def make(self) -> list[Update]:
        """Its updates, newly computed, with a graph if gradients are enabled."""


class Leaves:
    """Updates detached from the graph of the factors: gradients accumulate in them until `push`."""

    def __init__(self, made: list[Update]) -> None:
        self._sources = list({id(tensor): tensor for update in made for tensor in update.tensors}.values())
        self._own = {id(tensor): tensor.detach().requires_grad_(tensor.requires_grad) for tensor in self._sources}
        self.updates = [on_other_tensors(update, lambda own: self._own[id(own)]) for update in made]

    def push(self) -> None:
        """Propagate the accumulated gradients to the factors, once."""
        grads = [(tensor, self._own[id(tensor)].grad) for tensor in self._sources]
        pairs = [(tensor, grad) for tensor, grad in grads if grad is not None]
        if pairs:
            torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])

    def close(self) -> None:
        """Make later gradients an error, since they would not reach the factors."""
        for leaf in self._own.values():
            if leaf.requires_grad:
                leaf.grad = None
                leaf.register_hook(_too_late)


def _too_late(grad: Tensor) -> None:
    hint = "call backward() inside the with block"
    raise RunError("backward() came after the step of its forward pass", where="one_step", hint=hint)


class Scope:
    """Updates that are shared while it is open: with a graph, or without one; those with a graph serve both uses."""

    def __init__(
        self, factors: tuple[Tensor, ...], *, recorded: list[Update] | None = None, plain: list[Update] | None = None
    ) -> None:
        self._factors, self.recorded, self.plain = factors, recorded, plain

    def updates(self, factors: tuple[Tensor, ...], *, recording: bool) -> list[Update] | None:
        """Its updates for these factors, None if it has none."""
        if len(factors) != len(self._factors) or any(a is not b for a, b in zip(factors, self._factors, strict=True)):
            return None
        return self.recorded if recording else self.recorded or self.plain


class Step(Scope):
    """One optimizer step."""


class Kept(Scope):
    """A time in which the factors do not change."""


class Call(Scope):
    """A call of the adapted model."""

    def __init__(self, factors: tuple[Tensor, ...], frame: FrameType) -> None:
        super().__init__(factors)
        self._frame = frame

    def is_over(self) -> bool:
        """Whether the call has ended by an exception, without its hook: Python refuses to clear a running frame."""
        try:
            self._frame.clear()
        except RuntimeError:
            return False
        return True


class Sharing:
    """The open scopes of one adapter."""

    def __init__(self) -> None:
        self._threads = threading.local()
        self._steps: list[tuple[Step, Leaves]] = []  # of all threads
        self._backward: dict[int, Leaves] = {}  # by the number of the backward pass

    def __reduce__(self) -> tuple[Any, ...]:
        return Sharing, ()  # a copy has no open scope

    @property
    def _open(self) -> list[Scope]:
        """Those of this thread, innermost last."""
        if not hasattr(self._threads, "open"):
            self._threads.open = []
        scopes: list[Scope] = self._threads.open
        while scopes and isinstance(scopes[-1], Call) and scopes[-1].is_over():
            scopes.pop()
        return scopes

    @torch._disable_dynamo
    def current(self, maker: Maker) -> list[Update]:
        """The updates for a layer that runs now."""
        factors, recording = maker.trained(), _recording()
        if (found := self._find(factors, recording=recording)) is not None:
            return found
        backward = torch._C._current_graph_task_id()  # -1 outside of one
        if backward >= 0:
            return self._in_backward(maker, backward)
        made, scopes = _aside(maker), self._open
        if scopes and isinstance(scopes[-1], Call):  # a call without gradients that enables them for a part
            scopes[-1].recorded = made
        return made

    def _find(self, factors: tuple[Tensor, ...], *, recording: bool) -> list[Update] | None:
        for scope in reversed(self._open):
            if (found := scope.updates(factors, recording=recording)) is not None:
                return found
        return None

    def _in_backward(self, maker: Maker, number: int) -> list[Update]:
        """Updates for recomputed layers; their gradients reach the factors at the end of the backward pass.

        CUDA backward passes run in non-Python threads, where the open step of another thread counts too.
        """
        if len(self._steps) == 1 and isinstance(threading.current_thread(), threading._DummyThread):
            return self._steps[0][0].recorded or []
        if number not in self._backward:
            with torch.enable_grad():
                leaves = self._backward[number] = Leaves(_aside(maker))

            def end() -> None:
                self._backward.pop(number, None)
                leaves.push()

            torch.autograd.Variable._execution_engine.queue_callback(end)
        return self._backward[number].updates

    @torch._disable_dynamo
    def begin_call(self, maker: Maker) -> None:
        """Start a call of the adapted model: compute the updates now, outside any checkpointed part."""
        factors, recording = maker.trained(), _recording()
        if self._steps and recording:
            _refuse_unused()
        found = self._find(factors, recording=recording)
        if torch._C._current_graph_task_id() < 0:
            self._backward.clear()  # of backward passes that failed
        call = Call(factors, _calling_frame())
        self._open.append(call)
        if found is None:
            found = maker.make()
        if recording:
            call.recorded = found
        else:
            call.plain = found

    @torch._disable_dynamo
    def end_call(self) -> None:
        """End the call of the adapted model."""
        scopes = self._open
        if scopes and isinstance(scopes[-1], Call):
            scopes.pop()

    @contextmanager
    def opened(self, scope: Scope) -> Iterator[None]:
        """Keep a scope open inside."""
        self._open.append(scope)
        try:
            yield
        finally:
            self._open.remove(scope)

    @contextmanager
    def step(self, maker: Maker) -> Iterator[None]:
        """Inside, gradients accumulate in the updates; on leaving they are propagated to the factors."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = Leaves(maker.make())
        step = Step(maker.trained(), recorded=leaves.updates)
        self._steps.append((step, leaves))
        try:
            with self.opened(step):
                yield
            leaves.push()
        finally:
            self._steps.remove((step, leaves))
            leaves.close()


def _refuse_unused() -> None:
    """In a step, factors get their gradients at its end: DDP must not take them for unused before."""
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None and wrapper.find_unused_parameters:
        hint = "leave it out of DistributedDataParallel, or train without one_step"
        raise RunError("find_unused_parameters=True takes the factors for unused", where="one_step", hint=hint)


def _recording() -> bool:
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _aside(maker: Maker) -> list[Update]:
    """New updates, of which a surrounding checkpointed part saves nothing, since it recomputes them."""
    with saved_tensors_hooks(Tensor.detach, _itself):
        return maker.make()


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _calling_frame() -> FrameType:
    """The frame of the module call that runs this hook, skipping those of `torch.compile`."""
    frame = sys._getframe(1)
    while (
        frame.f_globals["__name__"].startswith(("superlora_cli.", "torch._dynamo", "torch._compile")) and frame.f_back
    ):
        frame = frame.f_back
    return frame
