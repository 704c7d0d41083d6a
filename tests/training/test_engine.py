"""The same numbers, however the work is cut up; and what is wrong is found."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from superlora_cli.errors import UsageError
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks.classification import task as classification
from superlora_cli.tasks.classification.task import Classification
from superlora_cli.training.checkpoints import load_state
from superlora_cli.training.meter import Meter
from superlora_cli.training.processes import Processes, join
from tests.cli.test_train import DROPOUT, lose_power, send, stop_at, uninterrupted
from tests.conftest import QUICK, Cli, metrics
from tests.data.test_splits import write_images

pytestmark = pytest.mark.slow

EMA = ("train.ema=0.7",)


def tensors(cli: Cli, name: str, *words: str) -> dict[str, Tensor]:
    """The adapter that a quick run with `words` ends with."""
    result = cli("train", *QUICK, *words, "--out", name, "--quiet")
    assert result.code == 0, result.err
    return load_file(f"{name}/adapter.safetensors")


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=0)


# The same adapter


@pytest.mark.parametrize(
    ("words", "atol"),
    [
        (("train.batch_size=16", "train.accumulate=4"), 1e-5),
        (("train.gradient_checkpointing=true",), 1e-6),
        (("data.workers=2",), 0.0),
        (("eval.batch_size=7",), 0.0),
    ],
    ids=["accumulated", "checkpointed", "workers", "evaluated in small batches"],
)
def test_the_adapter_is_the_same_however_the_work_is_cut_up(
    words: tuple[str, ...], atol: float, adapter: Path, cli: Cli
) -> None:
    assert_close(tensors(cli, "run", *words), load_file(adapter), atol)


def test_an_accumulated_run_reports_the_loss_of_the_whole_batch(trained: Path, cli: Cli) -> None:
    tensors(cli, "run", "train.batch_size=16", "train.accumulate=4")
    for found, wanted in zip(metrics(Path("run")), metrics(trained), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4) if "loss" in wanted else found["step"] == wanted["step"]


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_metrics(adapter: Path, cli: Cli) -> None:
    assert_close(tensors(cli, "run", "train.compile={backend: aot_eager}"), load_file(adapter), 1e-4)


def test_an_unknown_backend_of_compile_is_one_clear_line(cli: Cli) -> None:
    result = cli("train", *QUICK, "train.compile={backend: nonsense}")
    assert result.code == 2
    assert "nonsense" in result.message
    assert "train.compile" in result.message
    assert not Path("runs/quickstart").exists()


# The average


@pytest.mark.parametrize("step", [2, 5])
@pytest.mark.parametrize("how", ["died", "signalled"])
def test_a_resumed_run_with_an_average_equals_an_uninterrupted_one(
    how: str, step: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*EMA, *DROPOUT)
    with uninterrupted(tmp_path / "run", *words):
        stop_at(monkeypatch, step, lose_power if how == "died" else send(signal.SIGTERM))
        assert cli("train", *QUICK, *words, "--out", "run").code != 0
        assert cli("train", *QUICK, *words, "--out", "run", "--resume", "auto").code == 0


def test_the_average_and_not_the_last_weights_are_scored_and_kept(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []
    plain = Classification.score

    def score(self: Classification) -> dict[str, float]:
        seen.append({name: value.detach().cpu().clone() for name, value in self.trained().items()})
        return plain(self)

    monkeypatch.setattr(Classification, "score", score)
    result = cli("train", *QUICK, *EMA, "--out", "run", "--json").json()
    kept = load_file("run/adapter.safetensors")
    best = seen[result["metrics"]["best_step"] // 3 - 1]
    average = load_state(Path("run/checkpoints/step-000006"))["average"]
    assert_close(average, seen[-1], 0.0)
    assert_close(kept, best, 0.0)
    assert not torch.equal(*(next(iter(one.values())) for one in (kept, tensors(cli, "plain"))))


def test_a_checkpoint_has_the_weights_and_their_average(cli: Cli) -> None:
    tensors(cli, "run", *EMA)
    state = load_state(Path("run/checkpoints/step-000003"))
    assert any(not torch.equal(state["tensors"][name], value) for name, value in state["average"].items())


# What is not finite


def test_the_first_step_whose_loss_is_not_finite_is_the_one_named() -> None:
    meter = Meter(join(load_recipe("quickstart", ()).train), "images")
    for step, loss in enumerate((1.0, 2.0, float("nan"), 3.0, float("inf")), start=11):
        meter.add(torch.tensor(loss), 4, step)
    assert meter.look().bad_step == 13
    meter.add(torch.tensor(1.5), 4, 16)
    meter.add(torch.tensor(2.5), 4, 17)
    figures = meter.look()
    assert (figures.bad_step, figures.loss) == (None, 2.0)


def test_an_update_that_overflows_while_its_factors_are_finite_is_found() -> None:
    recipe = load_recipe("quickstart", ())
    task = Classification(build_for_training(recipe), join(recipe.train))
    assert task.not_finite() is None
    with torch.no_grad():
        for factor in task.trained().values():
            factor.fill_(1e30)
    assert all(torch.isfinite(factor).all() for factor in task.trained().values())
    assert (task.not_finite() or "").startswith("ΔW of blocks.0")


def test_one_process_does_not_number_itself_in_an_error() -> None:
    for count, says in ((1, "pets/b.png: broken"), (2, "process 0: pets/b.png: broken")):
        processes = Processes.__new__(Processes)
        processes.count, processes.index = count, 0
        with pytest.raises(UsageError) as caught, processes.alone():
            raise UsageError("broken", where="pets/b.png")
        assert str(caught.value) == says


# Running statistics

RESNET = ("model.name=resnet10t", "data.name=pets", "data.image_size=32", "train.steps=4", "train.batch_size=4",
          "train.threads=1", "eval.every=2", "train.checkpoint_every=2")  # fmt: skip
ADAPTED = (*RESNET, "model.pretrained=false", "model.head=new", 'adapter.targets=["layer*.*.conv1"]')


def statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items() if "running_" in name or "num_batches" in name}


def test_an_adapter_leaves_a_bases_running_statistics_alone(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Classification, dict[str, Tensor]]] = []

    class Watched(Classification):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append((self, statistics(self.model.state_dict())))

    monkeypatch.setattr(classification, "Classification", Watched)
    write_images(Path("pets"), count=6)
    result = cli("train", "quickstart", *ADAPTED)
    assert result.code == 0, result.err
    ((task, before),) = made
    assert len(before) >= 3
    assert_close(statistics(task.model.state_dict()), before, 0.0)


def test_a_trained_base_keeps_the_running_statistics_of_its_best_step(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([{"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.9, "loss": 2.0}])
    monkeypatch.setattr(Classification, "score", lambda self: next(scores))
    write_images(Path("pets"), count=6)
    result = cli("train", "pretrain_glyphs_vit", *RESNET, "--out", "run")
    assert result.code == 0, result.err
    second, fourth = (load_state(Path(f"run/checkpoints/step-00000{step}"))["tensors"] for step in (2, 4))
    kept = load_file("run/model.safetensors")
    assert_close(statistics(kept), statistics(second), 0.0)
    assert any(not torch.equal(value, fourth[name]) for name, value in statistics(kept).items())


def test_a_trained_base_with_running_statistics_resumes_to_the_same_bytes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(Path("pets"), count=6)
    words = ("train", "pretrain_glyphs_vit", *RESNET)
    assert cli(*words, "--out", "whole").code == 0
    stop_at(monkeypatch, 4, lose_power)
    assert cli(*words, "--out", "run").code == 1
    assert cli(*words, "--out", "run", "--resume", "run").code == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
