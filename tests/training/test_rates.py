"""The rate that is proposed: on problems whose largest stable rate is known, and for a recipe."""

from __future__ import annotations

import io
import math
from collections.abc import Generator
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from superlora_cli.errors import RunError
from superlora_cli.recipe.schema import TrainSection
from superlora_cli.training.display import Display
from superlora_cli.training.processes import join
from superlora_cli.training.rates import STEPS, WARM_UP, RangeTest, range_test


class Valley:
    """½ · curvature · (w − target)² for targets of ±1, drawn for every image: SGD is stable below 2 / curvature."""

    guessing, unit = math.inf, "drops"

    def __init__(self, curvature: float, *, head: bool = False) -> None:
        self.curvature = curvature
        self.weight, self.other = nn.Parameter(torch.tensor([5.0])), nn.Parameter(torch.tensor([5.0]))
        self.parts = {"head": self.other} if head else {}

    def one_step(self) -> nullcontext[None]:
        return nullcontext()

    def trained(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def head(self) -> dict[str, nn.Parameter]:
        return self.parts

    def buffers(self) -> dict[str, Tensor]:
        return {}

    def batches(self, start: int, stop: int) -> Generator[Tensor, None, None]:
        draw = torch.Generator().manual_seed(start)
        while True:
            yield torch.randint(2, (4,), generator=draw) * 2.0 - 1

    def amount(self, batch: Tensor) -> int:
        return len(batch)

    def loss(self, batch: Tensor) -> Tensor:
        rest = 0.5 * self.other**2 if self.parts else torch.zeros(1)
        return (0.5 * self.curvature * (self.weight - batch) ** 2 + rest).mean()


class Watched(Valley):
    """A valley that notes the head at every look at the loss."""

    def __init__(self, curvature: float, *, head: bool = False) -> None:
        super().__init__(curvature, head=head)
        self.seen: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        self.seen.append(self.other.item())
        return super().loss(batch)


def found(task: Any, **keys: Any) -> RangeTest:
    optimizer = {"name": "SGD", "lr": 123.0, **keys.pop("optimizer", {})}
    train = TrainSection.model_validate({"steps": 3, "device": "cpu", "optimizer": optimizer, **keys})
    display = Display(Console(file=io.StringIO()), steps=STEPS, start=0, quiet=True)
    return range_test(task, train, join(train), display)


@pytest.mark.parametrize("keys", [{}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("curvature", [0.1, 1.0, 300.0])
def test_the_rate_follows_the_curvature_and_is_stable(curvature: float, keys: dict[str, Any]) -> None:
    test = found(Valley(curvature), **keys)
    assert 0.05 < test.proposed * curvature < 2
    assert len(test.rates) < STEPS
    lowest = min(loss for _, loss in test.curve)
    assert lowest < 0.5 * test.curve[0][1] < test.curve[-1][1]


def test_throughput_is_in_the_unit_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    units = set()
    monkeypatch.setattr(Display, "step", lambda _, step, figures, lr: units.add(figures.unit))
    found(Valley(300.0))
    assert units == {"drops"}


def test_adam_needs_an_explicit_rate() -> None:
    sgd, adam = (found(Valley(300.0), optimizer={"name": name}) for name in ("SGD", "AdamW"))
    assert adam.proposed > 10 * sgd.proposed  # its steps do not grow with the gradient


def test_a_head_with_its_own_rate_keeps_it_and_any_other_follows() -> None:
    own, follows = Watched(1.0, head=True), Watched(1.0, head=True)
    found(own, optimizer={"head_lr": 0.0})
    found(follows)
    assert set(own.seen) == {5.0}
    assert len(set(follows.seen)) > 2


def test_a_head_with_a_rate_of_its_own_warms_up_to_it() -> None:
    """At its whole rate from the first step, a new head on a real base made the loss rise before the adapter moved."""
    valley = Watched(1.0, head=True)
    found(valley, optimizer={"name": "Adam", "head_lr": 0.1})
    heads = [
        5.0,
        *(value for value in valley.seen if value != 5.0),
    ]  # the untrained head is looked at between the steps
    moves = [before - after for before, after in pairwise(heads)]
    assert moves[0] == pytest.approx(0.1 / WARM_UP, rel=0.01)  # Adam's first step is its rate
    assert max(moves) == pytest.approx(0.1, rel=0.1)


def test_nothing_is_left_of_the_test() -> None:
    valley = Valley(1.0, head=True)
    torch.manual_seed(3)
    found(valley, optimizer={"lr": "find"})
    assert (valley.weight.item(), valley.other.item(), valley.weight.grad) == (5.0, 5.0, None)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_a_nan_loss_ends_the_test_and_is_left_out_of_the_curve() -> None:
    test = RangeTest()
    for rate, loss in ((0.1, 1.0), (0.2, 0.5), (0.4, math.nan)):
        test.add(rate, loss, 1.0)
    assert test.blown_up
    assert [rate for rate, _ in test.curve] == [0.1, 0.2]
    assert test.proposed == 0.02


@pytest.mark.parametrize(("steps", "doubtful"), [(9, True), (20, False)])
def test_a_rate_below_all_that_were_tried_is_doubtful(steps: int, doubtful: bool) -> None:
    test = RangeTest()
    for step in range(steps):
        test.add(1e-5 * 10 ** (step / 8), 1.0 if step < steps - 1 else 9.0, 1.0)
    note = test.doubt(0.03)
    assert (note is not None) == doubtful
    if note:
        assert "the rate found, 5e-06, is doubtful" in note
        assert "rose after 9 of 60 steps; try the default, 0.03, too" in note
        assert "try some higher ones" in (test.doubt(None) or "")


def test_a_loss_that_never_exceeds_the_untrained_one_is_too_high_when_it_has_risen_again() -> None:
    """As of a base that knows nothing of its task."""
    test = RangeTest()
    for rate, loss in ((0.1, 12.0), (0.2, 6.0), (0.4, 2.0), (0.8, 1.0), (1.6, 1.0), (3.2, 9.0), (6.4, 9.0)):
        test.add(rate, loss, 12.0)
        assert test.too_high == (3.2 if rate >= 3.2 else None)
    test.add(12.8, math.nan, 12.0)
    assert test.blown_up
    assert test.too_high == 3.2


def test_batches_that_differ_do_not_end_it() -> None:
    test = RangeTest()
    for step, untrained in enumerate((1.0, 0.2, 3.0, 9.0, 0.5), start=1):
        test.add(float(step), 0.9 * untrained, untrained)
        assert not test.blown_up


def test_no_rate_is_suggested_if_nothing_depends_on_it() -> None:
    with pytest.raises(RunError, match="did not rise up to a learning rate of 237"):
        found(Valley(0.0))
