"""The learner: one update by hand, and as many resumed as uninterrupted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import TrainSection
from superlora_cli.training.learner import Learner

STEPS = 8


def section(**keys: Any) -> TrainSection:
    return TrainSection.model_validate(
        {"steps": STEPS, "optimizer": {"name": "SGD", "lr": 0.1}, "scheduler": {"name": "constant"}, **keys}
    )


class Problem:
    """A body and a head of a few numbers that run after a target which moves at every step."""

    def __init__(self, train: TrainSection, **how: Any) -> None:
        draw = torch.Generator().manual_seed(0)
        self.body = nn.Parameter(torch.randn(3, 2, generator=draw))
        self.head = nn.Parameter(torch.randn(4, generator=draw))
        self.learner = Learner({"body": self.body}, {"head": self.head}, {}, train, **how)
        self.rates: list[list[float]] = []

    def loss(self, step: int) -> Tensor:
        return ((self.body - step) ** 2).sum() + ((self.head + step) ** 2).sum()

    def steps(self, start: int, stop: int) -> Problem:
        for step in range(start, stop):
            self.rates.append([group["lr"] for group in self.learner.optimizer.param_groups])
            self.learner.backward(self.loss(step))
            self.learner.update(last=step + 1 == STEPS)
        return self

    def values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.learner.parameters.items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def resumed(train: TrainSection, at: int) -> tuple[Problem, Problem]:
    """A problem resumed at step `at`, and an uninterrupted one, both at the end."""
    state = copy.deepcopy(Problem(train).steps(0, at).learner.state())
    return Problem(train, start=at, state=state).steps(at, STEPS), Problem(train).steps(0, STEPS)


# The average


def test_the_average_is_what_the_formula_gives_by_hand() -> None:
    problem = Problem(section(ema=0.3))
    wanted = problem.values()
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):  # the start is soon forgotten
        problem.steps(step, step + 1)
        wanted = {name: decay * wanted[name] + (1 - decay) * value for name, value in problem.values().items()}
    assert problem.learner.average is not None
    for name, value in wanted.items():
        torch.testing.assert_close(problem.learner.average[name], value)
        assert not torch.allclose(value, problem.values()[name])


def test_inside_averaged_the_model_has_the_average_and_afterwards_its_own_weights() -> None:
    problem = Problem(section(ema=0.5)).steps(0, 3)
    before = problem.values()
    assert problem.learner.average is not None
    with problem.learner.averaged():
        assert_equal(problem.values(), problem.learner.average)
    assert_equal(problem.values(), before)
    with pytest.raises(KeyError, match="inside"), problem.learner.averaged():
        raise KeyError("inside")
    assert_equal(problem.values(), before)


def test_without_an_average_the_weights_stay_as_they_are_inside_averaged() -> None:
    problem = Problem(section()).steps(0, 2)
    before = problem.values()
    with problem.learner.averaged():
        assert_equal(problem.values(), before)


def test_a_resumed_average_equals_an_uninterrupted_one() -> None:
    again, whole = resumed(section(ema=0.7), 3)
    assert again.learner.average is not None
    assert whole.learner.average is not None
    assert_equal(again.learner.average, whole.learner.average)
    assert_equal(again.values(), whole.values())


# Optimizers and schedules


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "SGD", "momentum": 0.9},
        {"name": "AdamW", "weight_decay": 0.1},
        {"name": "Adam", "amsgrad": True},
        {"name": "RMSprop"},
        {"name": "Adagrad"},
        {"name": "NAdam"},
    ],
    ids=lambda optimizer: optimizer["name"],
)
@pytest.mark.parametrize("schedule", [{"name": "constant"}, {"name": "OneCycleLR", "cycle_momentum": False}], ids=str)
def test_every_optimizer_resumes_to_the_same_weights(optimizer: dict[str, Any], schedule: dict[str, Any]) -> None:
    again, whole = resumed(section(optimizer={"lr": 0.05, **optimizer}, scheduler=schedule), 3)
    assert_equal(again.values(), whole.values())
    assert all(torch.isfinite(value).all() for value in whole.values().values())
    assert not torch.equal(whole.body, Problem(section()).body)


SCHEDULES = [
    {"name": "OneCycleLR", "pct_start": 0.3},
    {"name": "CosineAnnealingLR", "warmup": 3},
    {"name": "CosineAnnealingLR", "warmup": 0},
    {"name": "constant"},
    {"name": "constant", "warmup": 2},
    {"name": "StepLR", "step_size": 2, "gamma": 0.5},
    {"name": "LinearLR", "total_iters": 5},
]


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_resumed_learning_rates_and_momenta_equal_uninterrupted_ones(schedule: dict[str, Any], at: int) -> None:
    optimizer = {"name": "AdamW", "lr": 0.1, "head_lr": 0.01}
    again, whole = resumed(section(optimizer=optimizer, scheduler=schedule), at)
    assert again.rates == whole.rates[at:]
    assert_equal(again.values(), whole.values())
    assert [group["betas"] for group in again.learner.optimizer.param_groups] == [
        group["betas"] for group in whole.learner.optimizer.param_groups
    ]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_body_never_exceeds_lr_nor_the_head_head_lr(schedule: dict[str, Any]) -> None:
    train = section(optimizer={"name": "AdamW", "lr": 0.1, "head_lr": 0.01}, scheduler=schedule)
    rates = Problem(train).steps(0, STEPS).rates
    assert max(body for body, _ in rates) <= 0.1 + 1e-12
    assert max(head for _, head in rates) <= 0.01 + 1e-12
    assert all(head == pytest.approx(body / 10) for body, head in rates)


@pytest.mark.parametrize("rising", [1 / STEPS, 1 / 2, 1.0])
def test_one_cycle_may_rise_for_any_number_of_steps(rising: float) -> None:
    rates = [
        body for body, _ in Problem(section(scheduler={"name": "OneCycleLR", "pct_start": rising})).steps(0, 8).rates
    ]
    top = max(0, round(rising * STEPS) - 1)
    assert rates[top] == pytest.approx(0.1)
    assert rates == [*sorted(rates[: top + 1]), *sorted(rates[top + 1 :], reverse=True)]


def test_a_linear_warm_up_reaches_lr_after_its_steps() -> None:
    rates = [body for body, _ in Problem(section(scheduler={"name": "constant", "warmup": 3})).steps(0, 5).rates]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"optimizer": {"name": "LBFGS", "lr": 0.1}}, "LBFGS needs a closure"),
        ({"optimizer": {"name": "SparseAdam", "lr": 0.1}}, "SparseAdam needs sparse gradients"),
        ({"scheduler": {"name": "ReduceLROnPlateau"}}, "ReduceLROnPlateau needs a metric"),
        ({"optimizer": {"name": "AdmW", "lr": 0.1}}, "unknown optimizer 'AdmW'"),
        ({"optimizer": {"name": "Prodigy", "lr": 1}}, "unknown optimizer 'Prodigy' \\(AdamW, with lr: find"),
        ({"optimizer": {"name": "AdamW8bit", "lr": 0.1}}, "unknown optimizer 'AdamW8bit' \\(AdamW: the moments"),
        ({"optimizer": {"name": "SGD", "lr": 0.1, "betas": [0.9, 0.9]}}, "SGD refuses its arguments"),
        ({"scheduler": {"name": "StepLR"}}, "StepLR refuses its arguments"),
        ({"scheduler": {"name": "OneCycleLR", "warmup": 2}}, "OneCycleLR has its own warm-up"),
        ({"scheduler": {"name": "OneCycleLR", "total_steps": 5}}, "ends before the run of 8 steps"),
        ({"scheduler": {"name": "OneCycleLR", "pct_start": "half"}}, "OneCycleLR refuses its arguments"),
        (  # it divides by them
            {"scheduler": {"name": "CyclicLR", "base_lr": 0.01, "max_lr": 0.1, "step_size_up": 0}},
            "CyclicLR refuses its arguments: float division by zero",
        ),
    ],
)
def test_what_this_loop_cannot_run_is_refused_with_the_reason(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Problem(section(**keys))


@pytest.mark.parametrize("abstract", ["LRScheduler", "SequentialLR", "ChainedScheduler", "LambdaLR", "Optimizer"])
def test_a_schedule_that_no_recipe_can_describe_is_refused_before_training(abstract: str) -> None:
    with pytest.raises(UsageError, match=abstract):
        Problem(section(scheduler={"name": abstract}))


def test_a_state_of_another_optimizer_is_refused() -> None:
    state = Problem(section()).steps(0, 2).learner.state()
    with pytest.raises(UsageError, match="the checkpoint has the state of SGD"):
        Problem(section(optimizer={"name": "Adam", "lr": 0.1}), start=2, state=state)


# One update


def test_the_head_moves_at_head_lr_and_the_body_at_lr() -> None:
    problem = Problem(section(optimizer={"name": "SGD", "lr": 0.1, "head_lr": 0.001}))
    before = problem.values()
    problem.steps(0, 1)
    torch.testing.assert_close(problem.body, before["body"] * (1 - 2 * 0.1))
    torch.testing.assert_close(problem.head, before["head"] * (1 - 2 * 0.001))


def test_clip_norm_bounds_the_whole_update() -> None:
    problem = Problem(section(clip_norm=0.5, optimizer={"name": "SGD", "lr": 1.0}))
    before = problem.values()
    problem.steps(1000, 1001)
    moved = torch.cat([(value - before[name]).flatten() for name, value in problem.values().items()])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


# fp16


def scaler() -> Any:
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_scaled_gradients_are_unscaled_before_they_are_clipped_and_used(clip_norm: float | None) -> None:
    scaled = Problem(section(clip_norm=clip_norm), scaler=scaler()).steps(0, 5)
    plain = Problem(section(clip_norm=clip_norm)).steps(0, 5)
    for name, value in plain.values().items():
        torch.testing.assert_close(scaled.values()[name], value)


def test_an_infinite_gradient_skips_the_step_and_lowers_the_scale() -> None:
    problem = Problem(section(), scaler=scaler())
    before = problem.values()
    problem.learner.backward(problem.loss(0) * float("inf"))
    problem.learner.update(last=False)
    assert_equal(problem.values(), before)
    assert problem.learner.scaler.get_scale() == 512.0


def test_the_scale_is_in_the_state_and_comes_back() -> None:
    problem = Problem(section(), scaler=scaler()).steps(0, 3)
    assert problem.learner.scaler.get_scale() == 2048.0
    state = problem.learner.state()
    again = Problem(section(), scaler=scaler(), start=3, state=state)
    again.learner.scaler.scale(torch.ones(()))  # the scale is made when it is first used
    assert again.learner.scaler.get_scale() == 2048.0
    assert again.learner.state()["scaler"] == state["scaler"]


def test_a_trained_tensor_that_is_not_finite_is_named() -> None:
    problem = Problem(section())
    assert problem.learner.not_finite() is None
    with torch.no_grad():
        problem.head[2] = float("nan")
    assert problem.learner.not_finite() == "head"
