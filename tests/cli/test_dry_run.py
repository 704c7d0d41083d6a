"""What `--dry-run` says of memory is what a training step takes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional

from benchmarks.timing import peak_bytes
from superlora_cli.adapter import hadamard, prng
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.training.learner import Learner
from tests.conftest import Cli, run_cli

pytestmark = pytest.mark.slow

CHECKPOINTED = "train.gradient_checkpointing=true"


def memory(*words: str) -> dict[str, int]:
    result = run_cli("train", *words, "--dry-run", "--json")
    assert result.code == 0, result.err
    found: dict[str, int] = result.json()["memory"]
    return found


def test_the_parts_of_the_memory_are_named_and_fit_into_the_total() -> None:
    found = memory("digits_lorta3d")
    assert found.keys() == {"base", "adapter", "updates", "activations", "total"}
    assert all(isinstance(size, int) and size > 0 for size in found.values())
    assert max(found.values()) == found["total"] < sum(found.values())


def test_people_see_it_with_targets_units_parameters_and_steps(cli: Cli) -> None:
    shown = cli("train", "digits_lorta3d", "--dry-run").out
    for name in ("targets", "unit", "adapter parameters", "memory, estimated", "activations", "steps"):
        assert name in shown


def test_twice_the_batch_is_twice_the_activations() -> None:
    one, two = (memory("digits_lora", f"train.batch_size={size}") for size in (64, 128))
    assert two["activations"] == pytest.approx(2 * one["activations"], rel=0.02)
    assert (one["base"], one["adapter"]) == (two["base"], two["adapter"])


@pytest.mark.parametrize("knob", [CHECKPOINTED, "train.precision=bf16"])
def test_what_is_meant_to_save_memory_lowers_the_estimate(knob: str) -> None:
    plain, saving = memory("digits_lora"), memory("digits_lora", knob)
    assert saving["activations"] < 0.7 * plain["activations"]
    assert saving["total"] < plain["total"]


@pytest.mark.parametrize(("optimizer", "copies"), [("{name: AdamW, lr: 0.1}", 2), ("{name: SGD, lr: 0.1}", 0),
                                                   ("{name: SGD, lr: 0.1, momentum: 0.9}", 1)])  # fmt: skip
def test_the_optimizers_state_is_counted(optimizer: str, copies: int) -> None:
    whole = memory("digits_dense", f"train.optimizer={optimizer}")["adapter"]
    assert whole == pytest.approx(4 * 49_152 * (2 + copies), abs=100)  # factors, gradients, state; step counters


def test_the_average_is_counted() -> None:
    assert memory("digits_dense", "train.ema=0.9")["adapter"] - memory("digits_dense")["adapter"] == 4 * 49_152


def test_updates_that_are_never_built_take_nothing() -> None:
    factored, built = (memory("digits_lora", f"adapter.execution={path}") for path in ("factored", "materialised"))
    assert built["updates"] >= 2 * 4 * 49_152  # ΔW and its gradient
    assert factored["updates"] < 4 * 49_152 / 4


@pytest.mark.parametrize(
    "words",
    [("digits_lora",), ("digits_lora", CHECKPOINTED), ("digits_nonlinear_v2", "train.accumulate=2"),
     ("digits_lokr", "train.precision=bf16", "train.ema=0.9"), ("pretrain_glyphs_vit", "train.batch_size=32")],
    ids=" ".join,
)  # fmt: skip
def test_the_estimate_is_what_a_step_takes(words: tuple[str, ...]) -> None:
    assert memory(*words)["total"] == pytest.approx(measured(*words), rel=0.1)


def test_a_model_that_refuses_the_images_is_found_before_training(cli: Cli) -> None:
    result = cli("train", "digits_lora", "data.image_size=20", "--dry-run")
    assert result.code == 2
    assert "data.image_size: the model does not accept images of 20 × 20" in result.message


def test_a_refusal_without_words_has_no_empty_place(cli: Cli) -> None:
    words = "model.name=halonet26t", "model.pretrained=false", "model.head=new", "adapter.targets=['*conv*']"
    result = cli("train", "digits_lora", *words, "data.image_size=64", "--dry-run")
    assert (result.code, "images of 64 × 64 (" in result.message) == (2, True)


def test_an_estimate_leaves_nothing_without_values_behind() -> None:
    drawn = prng.random_state
    hadamard._block.cache_clear()
    memory("digits_linear")
    assert prng.random_state is drawn
    assert torch.equal(hadamard.transform(torch.eye(4)[0]), torch.full((4,), 0.5))


def measured(name: str, *overrides: str) -> int:
    """Bytes that the tensors of a real training hold at most, from the weights to the end of the second step."""
    recipe = load_recipe(name, overrides)

    def two_steps() -> None:
        built, train = build_for_training(recipe), recipe.train
        model, adapter, size = built.model.train(), built.adapter, built.base.image_size
        model.set_grad_checkpointing(train.gradient_checkpointing)  # type: ignore[operator]
        body = dict(adapter.factors.items()) if adapter else dict(model.named_parameters())
        learner = Learner(body, built.head, {}, train)
        images, labels = torch.randn(train.batch_size, 3, size, size), torch.zeros(train.batch_size, dtype=torch.long)
        for _ in range(2):
            with adapter.one_step() if adapter else nullcontext():
                for _ in range(train.accumulate):
                    with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
                        loss = functional.cross_entropy(model(images).float(), labels)
                    learner.backward(loss)
                    del loss
            learner.update(last=True)

    return peak_bytes(two_steps, torch.device("cpu"))
