"""Which updates a layer meets: those of a scope that is open, or new ones.

Making ΔW for every layer that asks would be slow, and nothing tells whether factors have changed since it was made: a
write through `.data`, which fused and 8-bit optimizers and copies of averages are, leaves no trace. So what is shared
is shared in scopes with a beginning and an end, innermost first:

- `Call`, a call of the adapted model: opened and closed by its hooks;
- `Step`, an optimizer step, and `Kept`, for as long as the factors stay: opened by who knows (`SuperLora`);
- a backward pass, where layers are computed again (gradient checkpointing).

A scope belongs to its thread, and to the very tensors it was opened with: `torch.func.functional_call` brings others.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from superlora_cli.adapter.updates import Update
from superlora_cli.errors import RunError


class Maker(Protocol):
    """What updates are made from: an adapter."""

    def trained(self) -> tuple[Tensor, ...]:
        """Its factors."""

    def make(self) -> list[Update]:
        """Its updates, freshly made, with a graph where gradients are enabled."""


class Leaves:
    """Updates cut off from the graph of the factors: gradients gather in them until `push`."""

    def __init__(self, made: list[Update]) -> None:
        self._sources = list({id(tensor): tensor for update in made for tensor in update.tensors}.values())
        self._own = {id(tensor): tensor.detach().requires_grad_(tensor.requires_grad) for tensor in self._sources}
        self.updates = [_on_other_tensors(update, self._own) for update in made]

    def push(self) -> None:
        """Take what has gathered through the graph of the factors, once for all."""
        grads = [(tensor, self._own[id(tensor)].grad) for tensor in self._sources]
        pairs = [(tensor, grad) for tensor, grad in grads if grad is not None]
        if pairs:
            torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])

    def close(self) -> None:
        """From now on a gradient that arrives is an error: it would go no further."""
        for leaf in self._own.values():
            if leaf.requires_grad:
                leaf.grad = None
                leaf.register_hook(_too_late)


def _too_late(grad: Tensor) -> None:
    hint = "backward() belongs inside the with block"
    raise RunError("backward() after the step that its forward pass belongs to", where="one_step", hint=hint)


def _on_other_tensors(update: Update, others: Mapping[int, Tensor]) -> Update:
    """The same update on other tensors, found by the identity of its own."""
    own = {name: others[id(value)] for name, value in vars(update).items() if isinstance(value, Tensor)}
    return cast(Update, replace(cast(Any, update), **own))


class Scope:
    """Updates for as long as it is open: some with a graph, some without; those with one serve for both."""

    def __init__(
        self, factors: tuple[Tensor, ...], *, recorded: list[Update] | None = None, plain: list[Update] | None = None
    ) -> None:
        self._factors, self.recorded, self.plain = factors, recorded, plain

    def updates(self, factors: tuple[Tensor, ...], *, recording: bool) -> list[Update] | None:
        """What it has for these factors."""
        if len(factors) != len(self._factors) or any(a is not b for a, b in zip(factors, self._factors, strict=True)):
            return None
        return self.recorded if recording else self.recorded or self.plain


class Step(Scope):
    """One optimizer step."""


class Kept(Scope):
    """For as long as nobody changes the factors."""


class Call(Scope):
    """A call of the adapted model."""

    def __init__(self, factors: tuple[Tensor, ...], frame: FrameType) -> None:
        super().__init__(factors)
        self._frame = frame

    def is_over(self) -> bool:
        """Whether the call has ended without its hook, by an exception: Python refuses to clear what still runs."""
        try:
            self._frame.clear()
        except RuntimeError:
            return False
        return True


class Sharing:
    """The scopes that are open for one adapter."""

    def __init__(self) -> None:
        self._threads = threading.local()
        self._steps: list[tuple[Step, Leaves]] = []  # of all threads
        self._backward: dict[int, Leaves] = {}  # by the number of the backward pass

    def __reduce__(self) -> tuple[Any, ...]:
        return Sharing, ()  # a copy has none open

    @property
    def _open(self) -> list[Scope]:
        """Of this thread, innermost last."""
        if not hasattr(self._threads, "open"):
            self._threads.open = []
        scopes: list[Scope] = self._threads.open
        while scopes and isinstance(scopes[-1], Call) and scopes[-1].is_over():
            scopes.pop()
        return scopes

    @torch._disable_dynamo
    def current(self, maker: Maker) -> list[Update]:
        """The updates for a layer that asks."""
        factors, recording = maker.trained(), _recording()
        if (found := self._find(factors, recording=recording)) is not None:
            return found
        backward = torch._C._current_graph_task_id()  # -1 outside of one
        if backward >= 0:
            return self._in_backward(maker, backward)
        made, scopes = _aside(maker), self._open
        if scopes and isinstance(scopes[-1], Call):  # one without gradients, in a part of which they are wanted
            scopes[-1].recorded = made
        return made

    def _find(self, factors: tuple[Tensor, ...], *, recording: bool) -> list[Update] | None:
        for scope in reversed(self._open):
            if (found := scope.updates(factors, recording=recording)) is not None:
                return found
        return None

    def _in_backward(self, maker: Maker, number: int) -> list[Update]:
        """For layers that are computed again: what their gradients gather in goes through the factors at its end.

        CUDA's backward passes run in threads that are not Python's: there the step of another thread holds as well.
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
        """The adapted model is called: make the updates now, outside of any part that is checkpointed."""
        factors, recording = maker.trained(), _recording()
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
        """The call of the adapted model has ended."""
        scopes = self._open
        if scopes and isinstance(scopes[-1], Call):
            scopes.pop()

    @contextmanager
    def opened(self, scope: Scope) -> Iterator[None]:
        """Inside, a scope is open."""
        self._open.append(scope)
        try:
            yield
        finally:
            self._open.remove(scope)

    @contextmanager
    def step(self, maker: Maker) -> Iterator[None]:
        """Inside, gradients gather in the updates; on leaving they go through the factors at once."""
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


def _recording() -> bool:
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _aside(maker: Maker) -> list[Update]:
    """New updates, of which a checkpointed part around it saves nothing: it has them anew when it is computed again."""
    with saved_tensors_hooks(Tensor.detach, _itself):
        return maker.make()


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _calling_frame() -> FrameType:
    """That of the module's call whose hook asks; `torch.compile` puts its own between."""
    frame = sys._getframe(1)
    while (
        frame.f_globals["__name__"].startswith(("superlora_cli.", "torch._dynamo", "torch._compile")) and frame.f_back
    ):
        frame = frame.f_back
    return frame
