"""Optimizers and schedules, with torch's names and keywords."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from superlora_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import OptimizerSection, SchedulerSection


UNUSABLE = {
    "LBFGS": "a closure that evaluates the loss again, which this loop does not have",
    "SparseAdam": "sparse gradients, which adapters do not have",
    "ReduceLROnPlateau": "a metric at every step, which this loop does not have",
}
ELSEWHERE = {  # parts of names of other libraries' optimizers, and what does their work
    "8bit": "AdamW: the moments of an adapter take little memory",
    "prodigy": "AdamW, with lr: find, which looks for a rate",
    "dadapt": "AdamW, with lr: find, which looks for a rate",
}


def make_optimizer(
    section: OptimizerSection, body: list[nn.Parameter], head: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer of `torch.optim`, with the head in its own group with `head_lr`.

    Raises:
        UsageError: there is no such optimizer, or it refuses the keywords.
    """
    known = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    kind = known.get(section.name)
    if kind is None or not issubclass(kind, Optimizer) or kind is Optimizer:
        theirs = (hint for part, hint in ELSEWHERE.items() if part in section.name.lower())
        hint = next(theirs, None) or did_you_mean(section.name, known) or "a class of torch.optim"
        raise UsageError(f"unknown optimizer '{section.name}'", where="train.optimizer.name", hint=hint)
    if section.name in UNUSABLE:
        message = f"{section.name} needs {UNUSABLE[section.name]}"
        raise UsageError(message, where="train.optimizer.name", hint="use AdamW, SGD, …")
    groups: list[dict[str, Any]] = [{"params": body, "lr": section.rate}]
    if head:
        groups.append({"params": head, "lr": section.rate if section.head_lr is None else section.head_lr})
    try:
        make: Any = kind  # torch's base class declares none of its subclasses' keywords
        optimizer: Optimizer = make([group for group in groups if group["params"]], lr=section.rate, **section.keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{section.name} refuses its arguments: {error}", where="train.optimizer") from None
    return optimizer


def make_scheduler(section: SchedulerSection, optimizer: Optimizer, *, steps: int, start: int) -> Any:
    """A schedule of `torch.optim.lr_scheduler` for a run of `steps` steps, advanced to step `start`.

    `constant` keeps the learning rate. `OneCycleLR` and `CosineAnnealingLR` get the length of the run, and `OneCycleLR`
    the groups' learning rates as its maxima. Any schedule except OneCycleLR, which has its own, may be preceded by a
    linear warm-up.

    Raises:
        UsageError: there is no such schedule, or it refuses the keywords.
    """
    if section.name in UNUSABLE:
        message = f"{section.name} needs {UNUSABLE[section.name]}"
        raise UsageError(message, where="train.scheduler.name", hint="use OneCycleLR, CosineAnnealingLR, …")
    keywords = section.keywords
    length = max(1, steps - section.warmup)
    if section.name == "OneCycleLR":
        keywords = {"total_steps": steps, "max_lr": [group["lr"] for group in optimizer.param_groups]} | keywords
        if section.warmup:
            raise UsageError("OneCycleLR has its own warm-up", where="train.scheduler.warmup", hint="set pct_start")
    elif section.name == "CosineAnnealingLR":
        keywords = {"T_max": length} | keywords
    kinds = {name: kind for name, kind in vars(lr_scheduler).items() if isinstance(kind, type)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about scheduler steps before the first optimizer step
        try:
            if section.name == "constant":
                schedule: Any = lr_scheduler.ConstantLR(optimizer, factor=1.0, **keywords)
            else:
                if section.name == "OneCycleLR":
                    keywords = _one_cycle(keywords, steps)
                schedule = kinds[section.name](optimizer, **keywords)
            if section.warmup:
                ramp = lr_scheduler.LinearLR(optimizer, 1 / (section.warmup + 1), total_iters=section.warmup)
                schedule = lr_scheduler.SequentialLR(optimizer, [ramp, schedule], milestones=[section.warmup])
        except KeyError:
            hint = did_you_mean(section.name, ["constant", *kinds]) or "a class of torch.optim.lr_scheduler"
            raise UsageError(f"unknown schedule '{section.name}'", where="train.scheduler.name", hint=hint) from None
        except (TypeError, ValueError, NotImplementedError, ArithmeticError) as error:
            raise UsageError(f"{section.name} refuses its arguments: {error}", where="train.scheduler") from None
        for _ in range(start):
            schedule.step()
    return schedule


def _one_cycle(keywords: dict[str, Any], steps: int) -> dict[str, Any]:
    """The keywords of a OneCycleLR that lasts for `steps` steps.

    Raises:
        UsageError: it ends earlier. TypeError: a keyword is not a number.
    """
    total, rising = keywords["total_steps"], keywords.get("pct_start", 0.3)
    if total < steps:
        message, hint = f"ends before the run of {steps} steps", "leave it out: it is the length of the run"
        raise UsageError(message, where="train.scheduler.total_steps", hint=hint)
    if math.isclose(rising * total, 1):  # torch would divide by zero
        rising *= 1 - 1e-6
    return {**keywords, "pct_start": rising}
