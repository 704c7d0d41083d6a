"""Two processes train what one trains, stop together, and speak with one voice."""

from __future__ import annotations

import json
import shutil
import signal
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from superlora_cli.adapter.store import load
from superlora_cli.cli import app
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks.classification.task import Classification
from superlora_cli.training.processes import Processes, join
from tests.cli.test_train import DROPOUT
from tests.conftest import QUICK, Cli, Result, contents, metrics
from tests.data.test_splits import write_images
from tests.forking.commands import Commands
from tests.training.launching import both, pair, spoken, together, torchrun, wait_for

RESNET = ("model.name=resnet10t", "data.name=pets", "data.image_size=32", "train.steps=4", "train.batch_size=4",
          "train.threads=1", "train.checkpoint_every=2")  # fmt: skip
HALF = (*QUICK, "train.batch_size=32")

# Shares


def process(index: int, count: int) -> Processes:
    made = Processes.__new__(Processes)
    made.index, made.count = index, count
    return made


@given(st.integers(1, 60), st.integers(1, 9))
def test_shares_are_equally_long_and_interleaved_and_cut_give_everything_in_order(length: int, count: int) -> None:
    shares = [process(index, count).share(length) for index in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert [index for row in zip(*shares, strict=True) for index in row][:length] == list(range(length))


@given(st.integers(1, 60), st.integers(1, 9))
def test_gather_undoes_share(length: int, count: int) -> None:
    rows = torch.arange(2 * length).view(length, 2)
    shares = torch.stack([rows[process(index, count).share(length)] for index in range(count)])
    one = process(0, count)
    one.accelerator = SimpleNamespace(gather=lambda tensor: shares)  # type: ignore[assignment]
    assert torch.equal(one.gather(shares[0] if count > 1 else rows, length), rows)


# Two against one


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """What two processes said, and their folder; read only."""
    with chdir(folder := tmp_path_factory.mktemp("two")):
        result = torchrun("train", *HALF, "--json")
    assert result.code == 0, result.err
    return result, folder / "runs" / "quickstart"


def assert_same_adapter(found: Path, wanted: Path, *, atol: float = 1e-5) -> None:
    reference, tensors = load_file(wanted / "adapter.safetensors"), load_file(found / "adapter.safetensors")
    assert tensors.keys() == reference.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, reference[name], atol=atol, rtol=0)


@pytest.mark.slow
def test_two_processes_with_half_the_batch_train_the_same_adapter_to_1e_5(
    two: tuple[Result, Path], trained: Path
) -> None:
    _, folder = two
    assert_same_adapter(folder, trained)
    for found, wanted in zip(metrics(folder), metrics(trained), strict=True):
        assert found.keys() == wanted.keys()
        assert found.get("loss") == pytest.approx(wanted.get("loss"), abs=1e-4)
    told = [json.loads((path / "eval.json").read_text()) for path in (folder, trained)]
    assert told[0]["metrics"]["accuracy"] == told[1]["metrics"]["accuracy"]
    assert told[0]["n"] == told[1]["n"]


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one_and_one_json_object(two: tuple[Result, Path], trained: Path) -> None:
    result, folder = two
    assert contents(folder).keys() == contents(trained).keys()
    assert result.json()["status"] == "completed"
    assert json.loads((folder / "run.json").read_text())["environment"]["processes"] == 2
    log = (folder / "log.txt").read_text().splitlines()
    assert len([line for line in log if "completed" in line]) == 1


@pytest.mark.slow
def test_a_base_spread_over_two_processes_trains_the_same_adapter(cli: Cli, trained: Path, commands: Commands) -> None:
    result = together(commands, "train", *HALF, "train.shard_base=true", "--out", "run", "--quiet")
    assert result.code == 0, result.err
    assert_same_adapter(Path("run"), trained)
    assert contents(Path("run")).keys() == contents(trained).keys()
    found, wanted = (json.loads((path / "eval.json").read_text()) for path in (Path("run"), trained))
    assert found["metrics"]["accuracy"] == wanted["metrics"]["accuracy"]


@pytest.mark.slow
def test_two_processes_train_numbers_of_a_few_bits(cli: Cli, commands: Commands) -> None:
    knobs = ["adapter.bits=4", "train.steps=40", "eval.every=40", "--quiet"]
    assert cli("train", *QUICK, *knobs, "--out", "one").code == 0
    result = together(commands, "train", *HALF, *knobs, "--out", "two")
    assert result.code == 0, result.err
    one, two = (load(Path(run, "adapter.safetensors")).factors for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, numbers in one.items():
        moved = (numbers.int() - two[name].int()).abs()
        assert moved.max() <= 1  # a number halfway between two levels falls to either, by a rounding
        assert moved.float().mean() <= 0.1


PLAIN = ("adapter.method=lora", "adapter.order=null", "adapter.core=null", "adapter.rank=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        (*PLAIN, "adapter.init=activations"),
        (*PLAIN, "adapter.method=shira", "adapter.projection=steepest"),
    ],
    ids=lambda knobs: knobs[-1],
)
def test_two_processes_start_from_the_same_first_batches(knobs: tuple[str, ...], cli: Cli, commands: Commands) -> None:
    knobs = (*knobs, "train.steps=2", "eval.every=2", "--quiet")
    assert cli("train", *QUICK, *knobs, "--out", "one").code == 0
    result = together(commands, "train", *HALF, *knobs, "--out", "two")
    assert result.code == 0, result.err
    assert_same_adapter(Path("two"), Path("one"), atol=1e-4)


def share_held() -> None:
    """In place of a command: tell how much of the base this process holds, and whether it has the whole adapter."""
    recipe = load_recipe("quickstart", ["train.shard_base=true", "train.device=cpu"])
    processes = join(recipe.train)
    task = Classification(build_for_training(recipe), processes)
    base = [p for n, p in task.model.named_parameters() if not n.startswith("superlora.")]
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in base)
    whole = all(not isinstance(p, DTensor) for p in task.trained().values())
    Path(f"held-{processes.index}.json").write_text(json.dumps([held, sum(p.numel() for p in base), whole]))
    processes.end()
    raise SystemExit(0)


@pytest.mark.slow
def test_each_of_two_processes_holds_half_of_a_spread_base_and_the_whole_adapter(cli: Cli, commands: Commands) -> None:
    result = together(commands, setup=(f"{__name__}:share_held",))
    assert result.code == 0, result.err
    for index in range(2):
        held, base, whole = json.loads(Path(f"held-{index}.json").read_text())
        assert 0.45 < held / base < 0.55
        assert whole


@pytest.mark.slow
def test_running_statistics_of_a_base_trained_by_two_processes_are_those_that_were_scored(
    cli: Cli, commands: Commands
) -> None:
    write_images(Path("pets"), count=20)
    words = (*RESNET, "data.validation=0.3", "eval.every=4", "--out", "run")
    result = together(commands, "train", "pretrain_glyphs_vit", *words, "--json")
    assert result.code == 0, result.err
    told = json.loads(Path("run/eval.json").read_text())["metrics"]
    evaluated = cli("eval", "run", "--json").json()["metrics"]
    assert evaluated["loss"] == pytest.approx(told["loss"], rel=1e-4)


# Stopped and resumed


@pytest.mark.slow
def test_two_processes_resumed_from_a_checkpoint_end_with_the_same_bytes(cli: Cli, commands: Commands) -> None:
    words = ("train", *HALF, *DROPOUT, "--out", "run", "--quiet")
    assert together(commands, *words).code == 0
    shutil.copytree("run", "whole")
    shutil.rmtree("run/checkpoints/step-000006")
    Path("run/adapter.safetensors").unlink()
    result = together(commands, *words, "--resume", "auto")
    assert result.code == 0, result.err
    assert Path("run/adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()
    assert Path("run/eval.json").read_bytes() == Path("whole/eval.json").read_bytes()
    assert metrics(Path("run")) == metrics(Path("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step_with_all_saved(
    told: int, cli: Cli, commands: Commands
) -> None:
    by_rank = pair(commands, "train", *HALF, "train.steps=100000", "eval.every=100000", "--out", "run")
    wait_for(lambda: list(Path("run/checkpoints").glob("step-*/COMPLETE")), by_rank[0])
    by_rank[told].kill(signal.SIGTERM)
    result = both(by_rank)
    assert result.code == 130
    (line,) = spoken(result)
    assert "stopped at step" in line
    step = int(line.partition("stopped at step ")[2].partition(",")[0])
    assert (Path("run/checkpoints") / f"step-{step:06d}" / "COMPLETE").is_file()
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"


# Refused


@pytest.mark.slow
def test_an_occupied_folder_is_refused_once_by_two_processes(cli: Cli, trained: Path, commands: Commands) -> None:
    shutil.copytree(trained, "run")
    before = contents(Path("run"))
    result = together(commands, "train", *HALF, "--out", "run")
    assert result.code == 2
    (line,) = spoken(result)
    assert "the folder is not empty" in line
    assert contents(Path("run")) == before


def test_an_error_of_both_processes_is_reported_by_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(app.time, "sleep", waited.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, words, seconds in (("0", 1, []), ("1", 0, [app.PATIENCE])):
        monkeypatch.setenv("RANK", rank)
        result = cli("train", "no_such_recipe")
        assert result.code == 2
        assert len(result.err.splitlines()) == words
        assert waited == seconds


@pytest.mark.slow
def test_an_error_in_all_processes_is_reported_once(cli: Cli) -> None:
    result = torchrun("train", *HALF, "model.name=no_such_model", "--out", "run")
    assert result.code == 1
    assert len(spoken(result)) == 1
    assert not Path("run").exists()


def test_sharding_the_base_needs_several_processes(cli: Cli) -> None:
    result = cli("train", *QUICK, "train.shard_base=true")
    assert result.code == 2
    assert result.message.startswith("superlora: train.shard_base: needs several processes")
    assert not Path("runs/quickstart").exists()


@pytest.mark.slow
def test_a_base_that_is_trained_itself_is_not_spread(cli: Cli, commands: Commands) -> None:
    words = ("pretrain_glyphs_vit", "train.steps=2", "data.train_images=64", "data.eval_images=20")
    result = together(commands, "train", *words, "train.shard_base=true", "--out", "run")
    assert result.code == 2
    (line,) = spoken(result)
    assert "without one there is no frozen base" in line
    assert not Path("run").exists()
