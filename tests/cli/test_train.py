"""A run's folder is complete, repeatable and resumable, whatever stops it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from superlora_cli.commands import train
from superlora_cli.models.embedded import EMBEDDED
from superlora_cli.recipe.load import shipped_recipes
from superlora_cli.recipe.yaml import read_yaml
from superlora_cli.tasks.classification.task import Classification
from superlora_cli.training.checkpoints import load_state
from tests.conftest import QUICK, Cli, contents, metrics, run_cli
from tests.forking.commands import Commands
from tests.training.launching import wait_for

DROPOUT = ("model.kwargs.drop_rate=0.2", "model.kwargs.proj_drop_rate=0.2")  # draws from the model's random numbers
ESTIMATED = ("quickstart", "digits", "pretrain", "vit_cifar100_2d_projection", "unet_svhn_to_mnist_lorta5d")
DRAWING = (*DROPOUT, "data.augment=crop_flip")


def steps_of(folder: Path, kind: str) -> list[int]:
    return [line["step"] for line in metrics(folder) if kind in line]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Calls `action` when the loss of `step` is computed; only once, so that a resumed run gets past it."""
    plain, calls = Classification.loss, iter(range(1, 10_000))

    def loss(self: Classification, batch: Any) -> torch.Tensor:
        if next(calls) == step:
            action()
        return plain(self, batch)

    monkeypatch.setattr(Classification, "loss", loss)


def lose_power() -> None:
    raise MemoryError("as if the machine went down")


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# The folder


def test_a_runs_folder_holds_what_the_documentation_lists(trained: Path) -> None:
    files = set(contents(trained))
    checkpoints = {f"checkpoints/step-00000{n}/{name}" for n in (3, 6) for name in
                   ("adapter.safetensors", "state.pt", "COMPLETE")}  # fmt: skip
    files.remove(".lock")
    assert files == checkpoints | {
        "recipe.yaml", "run.json", "metrics.jsonl", "log.txt", "eval.json", "adapter.safetensors",
        "confusion.csv",
    }  # fmt: skip
    about = json.loads((trained / "run.json").read_text())
    assert about["status"] == "completed"
    assert about["recipe"] == read_yaml(trained / "recipe.yaml").data
    assert about["steps"] == 6
    assert json.loads((trained / "eval.json").read_text())["n"] == 500
    assert steps_of(trained, "eval") == [3, 6]
    assert steps_of(trained, "loss") == [6]
    assert "completed" in (trained / "log.txt").read_text()


def test_the_quickstarts_adapter_is_tiny(adapter: Path) -> None:
    assert adapter.stat().st_size < 4_000
    assert sum(tensor.numel() for tensor in load_file(adapter).values()) < 100


def test_the_same_run_twice_is_the_same_bytes_and_goes_to_a_folder_of_its_own(adapter: Path, cli: Cli) -> None:
    first, second = (cli("train", *QUICK, "--quiet", "--json").json() for _ in range(2))
    assert (first["run"], second["run"]) == ("runs/quickstart", "runs/quickstart-2")
    assert Path(first["adapter"]).read_bytes() == Path(second["adapter"]).read_bytes() == adapter.read_bytes()


FULL_SIZE = ("dreambooth_", "style_", "metamath_", "vtab_", "fgvc_")  # tests/recipe/test_full_size.py


def test_json_is_one_object_on_stdout(cli: Cli) -> None:
    result = cli("train", *QUICK, "--json")
    content = result.json()
    assert content.keys() >= {"status", "run", "adapter", "params", "steps", "metrics"}
    assert content["status"] == "completed"
    assert content["params"].keys() >= {"adapter", "head"}
    assert content["metrics"].keys() >= {"accuracy", "accuracy_before", "val_accuracy", "loss"}
    assert all(0 <= content["metrics"][name] <= 1 for name in ("accuracy", "accuracy_before", "val_accuracy"))
    assert Path(content["adapter"]).is_file()
    assert result.err  # progress goes where it does not disturb


def test_quiet_says_the_result_alone(cli: Cli) -> None:
    result = cli("train", *QUICK, "--quiet")
    assert result.code == 0
    assert result.err == ""
    assert "adapter parameters" in result.out


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shipped_recipes() if not name.startswith(FULL_SIZE)])
def test_every_shipped_recipe_dry_runs_without_network_or_data(
    name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not name.startswith(ESTIMATED):
        monkeypatch.setattr(train, "step_memory", lambda *_, **__: {})  # takes longer than everything else
    plan = cli("train", name, "--dry-run", "--json").json()
    assert plan["status"] == "dry-run"
    assert plan["steps"] > 0
    recipe = read_yaml(shipped_recipes()[name]).data
    assert (plan["params"]["adapter"] + plan["params"]["head"] > 0) == ("adapter" in recipe)
    if "adapter" in recipe:
        counted = cli("count-params", name, "--json").json()
        assert all(counted[kind] == plan["params"][kind] for kind in ("adapter", "head"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bf16_trains_on_a_cpu(cli: Cli) -> None:
    result = cli("train", *QUICK, "train.precision=bf16", "--json").json()
    metrics = result["metrics"]
    assert all(map(torch.isfinite, map(torch.tensor, metrics.values())))


@pytest.mark.slow
def test_bf16_learns_as_float32_does(cli: Cli) -> None:
    words = ("train", "quickstart", "train.steps=40", "eval.every=40", "train.threads=1", "--quiet", "--json")
    full, half = (cli(*words, f"train.precision={name}").json()["metrics"] for name in ("fp32", "bf16"))
    assert full["accuracy"] > full["accuracy_before"] + 0.1
    assert half["accuracy"] > full["accuracy"] - 0.05


@pytest.mark.slow
def test_a_base_without_adapter_is_trained_whole_and_loads_in_timm(cli: Cli) -> None:
    words = ("pretrain_glyphs_vit", "train.steps=4", "data.train_images=200", "data.eval_images=50", "eval.every=2")
    result = cli("train", *words, "--json").json()
    assert "adapter" not in result
    assert result["params"]["adapter"] == 0
    file = Path(result["model"])
    assert file == Path("runs/pretrain_glyphs_vit/model.safetensors")
    base = EMBEDDED["glyphs_vit"]
    model = timm.create_model(base.architecture, checkpoint_path=str(file), num_classes=base.classes, **base.arguments)
    for name, tensor in load_file(file).items():
        assert torch.equal(model.state_dict()[name], tensor)
    for given in (result["run"], file):
        evaluated = cli("eval", given, "--json").json()
        assert evaluated["n"] == 50
        assert evaluated["metrics"]["accuracy"] == result["metrics"]["accuracy"]


# Stopped and resumed


REFERENCES = tempfile.TemporaryDirectory(prefix="references-")


@cache
def reference_of(*words: str) -> Path:
    """The folder of the run that nothing stopped, trained once; read only."""
    folder = Path(tempfile.mkdtemp(dir=REFERENCES.name))
    with contextlib.chdir(folder):
        result = run_cli("train", *QUICK, *words, "--out", "reference", "--quiet")
    assert result.code == 0, result.err
    return folder / "reference"


@contextlib.contextmanager
def uninterrupted(folder: Path, *words: str) -> Iterator[Path]:
    yield folder
    reference = reference_of(*words)
    assert (folder / "adapter.safetensors").read_bytes() == (reference / "adapter.safetensors").read_bytes()
    assert (folder / "eval.json").read_bytes() == (reference / "eval.json").read_bytes()
    for kind in ("loss", "eval"):
        assert steps_of(folder, kind) == steps_of(reference, kind)
    assert not [name for name in contents(folder) if name.endswith(".tmp")]


def test_auto_resume_starts_afresh_where_there_is_nothing(adapter: Path, cli: Cli) -> None:
    assert cli("train", *QUICK, "--resume", "auto").code == 0
    assert Path("runs/quickstart/adapter.safetensors").read_bytes() == adapter.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_died_and_was_resumed_equals_an_uninterrupted_one(
    step: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uninterrupted(tmp_path / "run", *DRAWING):
        stop_at(monkeypatch, step, lose_power)
        assert cli("train", *QUICK, *DRAWING, "--out", "run").code == 1
        assert cli("train", *QUICK, *DRAWING, "--out", "run", "--resume", "auto").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_names_the_way_on_and_loses_nothing(
    number: signal.Signals, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uninterrupted(tmp_path / "run", *DRAWING):
        stop_at(monkeypatch, 2, send(number))
        stopped = cli("train", *QUICK, *DRAWING, "--out", "run")
        assert stopped.code == 130
        assert "stopped at step 2, saved" in stopped.message
        assert "--resume run" in stopped.message
        assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
        assert (tmp_path / "run/checkpoints/step-000002/COMPLETE").is_file()
        assert not Path("run/adapter.safetensors").exists()
        assert cli("train", *QUICK, *DRAWING, "--resume", "run").code == 0


def test_a_second_sigint_stops_at_once_and_still_names_the_way_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    stop_at(monkeypatch, 5, twice)
    stopped = cli("train", *QUICK, "--out", "run")
    assert stopped.code == 130
    assert "continue with --resume run" in stopped.message
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_an_interrupt_before_training_leaves_nothing(
    words: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classification, "__init__", interrupt)
    result = cli("train", *QUICK, *words)
    assert result.code == 130
    if words:
        assert result.json()["error"]["code"] == 130
    else:
        assert result.message == "superlora: interrupted"
    assert not Path("runs/quickstart").exists()


def test_signal_handlers_are_put_back(cli: Cli) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert cli("train", *QUICK).code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("words", [QUICK, ()], ids=["recipe", "its own"])
def test_a_finished_run_resumes_to_the_same_bytes(words: tuple[str, ...], trained: Path, cli: Cli) -> None:
    shutil.copytree(trained, "run")
    before = {name: content for name, content in contents(Path("run")).items() if not name.endswith((".json", ".txt"))}
    assert cli("train", *words, "--resume", "run").code == 0
    after = contents(Path("run"))
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_run_is_resumed_where_it_was_moved_to(trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopping:
        stop_at(stopping, 2, send(signal.SIGINT))
        assert cli("train", *QUICK, "output.dir=first").code == 130
    Path("first").rename("moved")
    assert cli("train", "--resume", "moved").code == 0
    assert not Path("first").exists()
    assert metrics(Path("moved")) == metrics(trained)
    assert cli("train", "--resume", "moved", "train.steps=7", "eval.every=7", "--json").json()["steps"] == 7


def test_what_is_trained_is_asked_for(cli: Cli) -> None:
    for words, what in (
        ((), "recipe: no recipe is given"),
        (("train.steps=8",), "recipe: no recipe is given"),
        (("--resume", "auto"), "recipe: no recipe is given"),
        (("--resume", "run"), "run: no such run folder"),
    ):
        result = cli("train", *words)
        assert result.code == 2
        assert what in result.err


@pytest.mark.slow
def test_a_checkpoint_without_its_mark_does_not_exist(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uninterrupted(tmp_path / "run"):
        stop_at(monkeypatch, 5, lose_power)
        assert cli("train", *QUICK, "train.checkpoint_every=2", "--out", "run").code == 1
        Path("run/checkpoints/step-000004/COMPLETE").unlink()
        Path("run/checkpoints/step-000004/state.pt").write_bytes(b"half")
        assert cli("train", *QUICK, "--resume", "run").code == 0


def test_metrics_torn_by_a_crash_are_mended(trained: Path, cli: Cli) -> None:
    shutil.copytree(trained, "run")
    shutil.rmtree("run/checkpoints/step-000006")
    lines = Path("run/metrics.jsonl").read_text()
    Path("run/metrics.jsonl").write_text(lines + '{"step": 7, "lo')
    assert cli("train", *QUICK, "--resume", "run").code == 0
    assert metrics(Path("run")) == metrics(trained)


def test_a_changed_recipe_is_named_key_by_key_and_takes_effect(trained: Path, cli: Cli) -> None:
    shutil.copytree(trained, "run")
    changed = ("train.steps=8", "train.optimizer.lr=0.002", "train.scheduler={name: constant}")
    result = cli("train", *QUICK, *changed, "--resume", "run")
    assert result.code == 0
    for line in (
        "train.steps: 6 → 8",
        "train.optimizer.lr: 0.1 → 0.002",
        "train.scheduler.name: OneCycleLR → constant",
    ):
        for told in (result.err, Path("run/log.txt").read_text()):
            assert f"resuming with a changed recipe: {line}" in told
    last = metrics(Path("run"))[-2]
    assert last == {"step": 8, "loss": last["loss"], "lr": 0.002}
    assert read_yaml("run/recipe.yaml").data["train"]["steps"] == 8


def test_force_starts_afresh_and_removes_a_runs_own_files_alone(trained: Path, adapter: Path, cli: Cli) -> None:
    shutil.copytree(trained, "run")
    for name in ("notes.txt", "plots/a.png"):
        (Path("run") / name).parent.mkdir(exist_ok=True)
        (Path("run") / name).write_text("mine")
    words = ("train.steps=2", "train.checkpoint_every=1")
    assert cli("train", *QUICK, *words, "--out", "run", "--force").code == 0
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert Path("run/notes.txt").read_text() == Path("run/plots/a.png").read_text() == "mine"
    assert Path("run/adapter.safetensors").read_bytes() != adapter.read_bytes()
    assert steps_of(Path("run"), "loss") == [2]


def test_old_checkpoints_go_and_those_asked_for_stay(cli: Cli) -> None:
    words = ("train.checkpoint_every=1", "train.checkpoint_at=[2]", "train.keep=1")
    assert cli("train", *QUICK, *words, "--out", "run").code == 0
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["step-000002", "step-000006"]


def test_the_state_of_a_checkpoint_is_tensors_and_primitives(trained: Path) -> None:
    state = load_state(trained / "checkpoints" / "step-000003")  # with weights_only=True
    assert state["progress"]["step"] == 3
    assert state["optimizer"]["name"] == "AdamW"


def test_the_best_step_is_kept_not_the_last(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([{"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.9, "loss": 2.0}])
    monkeypatch.setattr(Classification, "score", lambda self: next(scores))
    result = cli("train", *QUICK, "--json").json()
    assert result["metrics"]["best_step"] == 3
    kept = load_file(result["adapter"])
    third = load_state(Path("runs/quickstart/checkpoints/step-000003"))["tensors"]
    assert all(torch.equal(kept[name], third[name]) for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [(), ("train.accumulate=2", "train.batch_size=32", "data.workers=2")], ids=["plain", "accumulated"]
)
def test_killed_at_random_moments_and_resumed_a_run_ends_with_the_same_bytes(
    extra: tuple[str, ...], commands: Commands, cli: Cli, tmp_path: Path
) -> None:
    words = ("train.steps=60", "eval.every=10", "train.checkpoint_every=5", *extra)
    command = ("train", *QUICK, *words, "--out", "run", "--resume", "auto")
    draw = random.Random(0)
    with uninterrupted(tmp_path / "run", *words):
        for kill in range(3):
            running = commands.start(*command, cwd=tmp_path)
            wait_for(Path("run/recipe.yaml").exists, running)
            # the first kill comes as soon as training has begun, the others at a moment of it
            time.sleep(draw.uniform(0, 0.2) if kill == 0 else draw.uniform(0, 1.5))
            running.kill(signal.SIGKILL)
            assert running.done.code in (-signal.SIGKILL, 0), running.done.err
        commands.right(*command, cwd=tmp_path)
