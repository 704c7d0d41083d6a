"""One piece of work for any loop, and what comes of it in plain autograd from the paper's formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from superlora_cli.adapter import naive
from superlora_cli.adapter.attach import SuperLora, attach, detach
from superlora_cli.adapter.factored import why_not_factored
from superlora_cli.adapter.layers import by_module
from superlora_cli.models.targets import expand
from tests.adapter.variants import FROM_BASE, FROZEN, INNER, PLAIN, PROJECTED, SPECTRAL, STACKED, config_of

STEPS, RATE = 3, 0.03
TABLE = {**PLAIN, **INNER, **FROZEN, **FROM_BASE, **STACKED, **SPECTRAL, **PROJECTED}
NAMES = ("lora", "lokr", "2D, not folded", "lotr", "vera", "lora_xs", "dense", "loha", "lonkr", "lorta 3D",
         "CP 5D diagonal", "unilora", "fourierft", "linear 0.5 of 2D", "nonlinear 0.3 of 2D")  # fmt: skip
Objective = Callable[[nn.Module | Callable[..., Any], Tensor], Tensor]


class Block(nn.Module):
    """An attention-like block: q and v are rows of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 36), nn.Linear(36, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(torch.tanh(self.qkv(x)))


class Plain(nn.Sequential):
    """Two blocks."""

    patterns = ("*.qkv[0:12]", "*.qkv[24:36]")

    def __init__(self) -> None:
        super().__init__(Block(), Block())


def squares(model: Callable[..., Any], batch: Tensor) -> Tensor:
    """A loss: of the model's outputs or, where it has such, its logits."""
    output = model(batch)
    values: Tensor = output if isinstance(output, Tensor) else output["logits"]
    return (values - 1).square().mean()


@dataclass(frozen=True)
class Work:
    """A variant on one of its execution paths, to be trained on a few batches.

    Attributes:
        make: the base.
        batch: a batch of inputs from a generator.
        objective: the loss.
    """

    variant: str
    path: str
    make: Callable[[], nn.Module] = Plain
    batch: Callable[[torch.Generator], Tensor] = lambda generator: torch.randn(6, 3, 8, generator=generator).double()
    objective: Objective = squares

    def base(self) -> nn.Module:
        """Always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()

    def knobs(self) -> dict[str, Any]:
        """Of the adapter."""
        return {**TABLE[self.variant], "execution": self.path}

    def adapted(self) -> tuple[nn.Module, SuperLora]:
        """The base with an adapter that has moved."""
        model = self.base()
        adapter = attach(model, expand(model, model.patterns), config_of(self.knobs()))
        move(adapter)
        return model.double(), adapter

    def batches(self) -> list[Tensor]:
        """One a step."""
        generator = torch.Generator().manual_seed(2)
        return [self.batch(generator) for _ in range(STEPS)]

    def wanted(self) -> tuple[dict[str, Tensor], Tensor]:
        """The factors after training, and what the model gives for the first batch then."""
        model, adapter = self.adapted()
        planes, plan, targets = adapter.from_base, adapter.plan, adapter.targets
        params = {name: factor.detach().clone().requires_grad_() for name, factor in adapter.factors.items()}
        detach(model)
        model.eval()

        def call(batch: Tensor) -> Any:
            deltas, weights = naive.deltas(plan, params, planes), {}
            for name, indices in by_module(targets).items():
                weight = model.get_submodule(name).weight.detach().clone()
                for index in indices:
                    weight[targets[index].start : targets[index].stop] += deltas[index].view(targets[index].shape)
                weights[f"{name}.weight"] = weight
            return functional_call(model, weights, (batch,))

        optimizer = torch.optim.AdamW(params.values(), lr=RATE, weight_decay=0)
        for batch in self.batches():
            optimizer.zero_grad()
            self.objective(call, batch).backward()
            optimizer.step()
        with torch.no_grad():
            return {name: value.detach() for name, value in params.items()}, squares(call, self.batches()[0])


def move(adapter: SuperLora) -> None:
    """Random factors, always the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(0.5 * torch.randn(factor.shape, generator=generator))


def cases(names: tuple[str, ...] = NAMES) -> Iterator[tuple[str, str]]:
    """(variant, execution path), for every path that a variant has."""
    for name in names:
        yield name, "materialised"
        _, adapter = Work(name, "materialised").adapted()
        if why_not_factored(adapter.plan) is None:
            yield name, "factored"
