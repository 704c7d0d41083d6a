"""The trained tensors and everything that updates them: optimizer, schedule, scaler, moving average."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from superlora_cli.errors import CannotResumeError
from superlora_cli.training.optim import make_optimizer, make_scheduler

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import TrainSection
    from superlora_cli.training.local import Local

State = dict[str, Any]


class Learner:
    """The trained tensors and everything that updates them.

    Args:
        body, head: trained parameters by name, each part with its own learning rate.
        buffers: other tensors that training changes, such as BatchNorm's running statistics.
        scaler: gradient scaler for fp16; None in other precisions.
        start: the step at which training starts.
        state: the result of `state` at that step; None at the beginning.
        local: trains groups of the body one after another, each with an optimizer and a schedule of its own.

    Raises:
        UsageError: torch refuses the optimizer or the schedule. CannotResumeError: `state` does not fit the recipe.
    """

    def __init__(
        self,
        body: Mapping[str, nn.Parameter],
        head: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        train: TrainSection,
        *,
        scaler: Any = None,
        start: int = 0,
        state: Mapping[str, Any] | None = None,
        local: Local | None = None,
    ) -> None:
        self._train, self._body, self._head, self._local, self.step = train, body, head, local, start
        self.whole: dict[str, nn.Parameter] = {**body, **head}
        self.tensors: dict[str, Tensor] = {**self.whole, **buffers}
        self._begin_turn()
        self.clip_norm, self.scaler = train.clip_norm, scaler
        if state:
            self._check(state)
            self.put(state["tensors"])
        self.average: dict[str, Tensor] | None = None  # of parameters only
        if train.ema is not None:
            self.average = {name: value.detach().clone() for name, value in self.whole.items()}
            for name, value in ((state or {}).get("average") or {}).items():
                self.average[name].copy_(value)
        self._begin_schedule()
        if state:
            groups = self.optimizer.state_dict()[
                "param_groups"
            ]  # rates from the current recipe, moments from the state
            self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
            if scaler and state["scaler"]:
                scaler.load_state_dict(state["scaler"])

    def _begin_turn(self) -> None:
        """Find the parameters that are trained at this step, and give them an optimizer without a state."""
        body, self._first, self._stop = self._body, 0, self._train.length
        if self._local is not None:
            body, self._first, self._stop = self._local.enter(self.step)
        self.parameters: dict[str, nn.Parameter] = {**body, **self._head}
        self.optimizer = make_optimizer(self._train.optimizer, list(body.values()), list(self._head.values()))

    def _begin_schedule(self) -> None:
        assert self._train.scheduler is not None  # `with_defaults` filled it in
        steps, start = self._stop - self._first, self.step - self._first
        self.scheduler = make_scheduler(self._train.scheduler, self.optimizer, steps=steps, start=start)

    @property
    def lr(self) -> float:
        """Learning rate of the body."""
        return float(self.optimizer.param_groups[0]["lr"])

    def gradients(self) -> list[Tensor]:
        """The gradients of the backward passes so far."""
        if self._local is not None:
            self._local.collect()
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def statistics(self) -> list[Tensor]:
        """Running statistics, which every process computes over its own share of the images."""
        return [value for name, value in self.tensors.items() if name not in self.whole and value.is_floating_point()]

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def update(self, *, last: bool) -> None:
        """One step of the optimizer, the average and, unless it is the `last` one, the schedule or the turn."""
        if self._local is not None:
            self._local.collect()
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        for parameter in (*self.parameters.values(), *self.whole.values()):
            parameter.grad = None
        if self.average and self._train.ema:
            mix = get_ema_multi_avg_fn(min(self._train.ema, (1 + self.step) / (10 + self.step)))
            with torch.no_grad():
                mix(list(self.average.values()), list(self.whole.values()), 0)
        self.step += 1
        if self._local is not None and self.step == self._stop and not last:
            self._begin_turn()
            self._begin_schedule()
        elif not last:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns if the first fp16 step was skipped
                self.scheduler.step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, if the recipe asks for them: these are evaluated and saved."""
        with self.having(self.average or {}):
            yield

    @contextmanager
    def having(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, some of the trained tensors have other values."""
        present = {name: self.tensors[name].detach().clone() for name in values}
        self.put(values)
        try:
            yield
        finally:
            self.put(present)

    def not_finite(self) -> str | None:
        """The name of a trained tensor with NaN or Inf, if any; one synchronisation if there is none."""
        floats = {name: value for name, value in self.tensors.items() if value.is_floating_point()}
        bad = torch.stack([~torch.isfinite(value).all() for value in floats.values()])
        return next((name for name, is_bad in zip(floats, bad.tolist(), strict=True) if is_bad), None)

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the trained tensors, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.tensors.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set the values of trained tensors."""
        for name, value in values.items():
            self.tensors[name].copy_(value)

    def state(self) -> State:
        """Everything a resumed training needs to continue exactly, as tensors and primitives."""
        return {
            "tensors": self.snapshot(),
            "optimizer": {"name": type(self.optimizer).__name__, **self.optimizer.state_dict()},
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "average": self.average,
            **({} if self._local is None else {"turn": list(self.parameters)}),
        }

    def _check(self, state: Mapping[str, Any]) -> None:
        def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
            return {name: value.shape for name, value in tensors.items()}

        if shapes(state["tensors"]) != shapes(self.tensors):
            message = "the tensors in the checkpoint are not those that this recipe trains"
            raise CannotResumeError(message, hint="resume with its own recipe")
        if state.get("turn") != (None if self._local is None else list(self.parameters)):
            message = "the checkpoint was written while other layers were trained"
            raise CannotResumeError(message, where="train.local", hint="resume with its own recipe")
        before, now = state["optimizer"]["name"], type(self.optimizer).__name__
        if before != now:
            message, where = f"the checkpoint has the state of {before}", f"train.optimizer.name={now}"
            raise CannotResumeError(message, where=where, hint=f"resume with {before}")
