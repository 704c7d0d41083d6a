"""Learning what a finished run answers: the loss, and runs of images and of texts from end to end."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, rel_entr, softmax

from superlora_cli.adapter.store import load
from superlora_cli.opening.build import build_for_training, build_from_file
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks import task_of
from superlora_cli.tasks.teaching import binary_divergence, divergence
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder
from tests import language_models
from tests.cli.test_multi_label import RECIPE as COLOURED
from tests.cli.test_multi_label import write_colours
from tests.cli.test_own_images import write_digits
from tests.conftest import Cli, metrics, run_cli
from tests.tasks.test_language import recipe as of_texts

TAUGHT = ("train.steps=12", "train.checkpoint_every=6", "train.log_every=1", "eval.every=6", "train.threads=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher/`, a finished run on the digits; read only."""
    place = tmp_path_factory.mktemp("taught")
    with contextlib.chdir(place):
        assert run_cli("train", "quickstart", "train.steps=60", "train.threads=1", "--out", "teacher").code == 0
    return place


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 20))
def test_distances_are_those_of_scipy(seed: int, scale: float) -> None:
    one, two = scale * np.random.RandomState(seed).randn(2, 5, 4)
    found = divergence(torch.tensor(one), torch.tensor(two)).numpy()
    shares, logs = softmax(two, -1), log_softmax(two, -1) - log_softmax(one, -1)
    np.testing.assert_allclose(found, (shares * logs).sum(-1), atol=1e-9)
    both = sum(rel_entr(expit(sign * two), expit(sign * one)) for sign in (1, -1)).mean(-1)
    np.testing.assert_allclose(binary_divergence(torch.tensor(one), torch.tensor(two)).numpy(), both, atol=1e-9)


def test_the_first_loss_is_the_formula(place: Path, cli: Cli) -> None:
    section = f"train.teacher={{run: {place / 'teacher'}, temperature: 3, weight: 0.75}}"
    assert cli("train", "quickstart", *TAUGHT, section, "--out", "taught").code == 0
    assert cli("train", "quickstart", *TAUGHT, "--out", "plain").code == 0
    plain, taught = (metrics(Path(name))[0]["loss"] for name in ("plain", "taught"))
    built = build_from_file(place / "teacher" / "adapter.safetensors")
    base = build_for_training(load_recipe("plain/recipe.yaml"))
    task = task_of(base.recipe)(base, join(base.recipe.train))
    images, _ = next(task.batches(0, 1))
    with torch.no_grad():
        told, outputs = built.model.eval()(images), base.model(images)
    wanted = 0.25 * plain + 0.75 * 9 * divergence(outputs / 3, told / 3).mean().item()
    assert taught == pytest.approx(wanted, rel=1e-4)
    assert taught != pytest.approx(plain, rel=0.01)


def test_steps_after_quantising_learn_from_the_teacher_too(place: Path, cli: Cli) -> None:
    shutil.copytree(place / "teacher", "teacher")
    assert cli("train", "quickstart", *TAUGHT, "train.teacher.run=teacher", "--out", "run").code == 0
    words = ("compress", "run", "--bits", "8", "--tune", "3", "--json")
    assert cli(*words, "--out", "taught.safetensors").code == 0
    assert cli(*words, "--out", "again.safetensors").code == 0
    assert cli(*words, "train.teacher=null", "--out", "labels.safetensors").code == 0
    taught, again, labels = (load(Path(f"{name}.safetensors")).factors for name in ("taught", "again", "labels"))
    assert all(torch.equal(taught[name], again[name]) for name in taught)
    assert not all(torch.equal(taught[name], labels[name]) for name in taught)
    shutil.rmtree("teacher")
    gone = cli(*words, "--out", "x.safetensors").json()["error"]
    assert (gone["code"], gone["where"]) == (2, "train.teacher.run=teacher")
    assert "train.teacher=null" in gone["hint"]
    assert cli("compress", "run", "--bits", "8", "--out", "x.safetensors").code == 0


@pytest.mark.slow
def test_a_model_comes_near_its_teacher_and_needs_it_no_more(place: Path, cli: Cli) -> None:
    shutil.copytree(place / "teacher", "teacher")
    before = run_cli("eval", "teacher", "--json").json()["metrics"]["accuracy"]
    words = ("train", "quickstart", *TAUGHT, "train.steps=60", "train.teacher.run=teacher", "--out", "run", "--json")
    done = cli(*words).json()
    assert done["metrics"]["accuracy"] > done["metrics"]["accuracy_before"] + 0.5 * (
        before - done["metrics"]["accuracy_before"]
    )
    assert "learns what teacher answers (glyphs_vit)" in Path("run", "log.txt").read_text()
    shutil.rmtree("teacher")
    assert cli("eval", "run", "--json").json()["metrics"]["accuracy"] == done["metrics"]["accuracy"]
    assert cli("merge", "run", "--out", "merged.safetensors").code == 0
    gone = cli(*words, "--force")
    assert (gone.code, gone.json()["error"]["where"]) == (2, "train.teacher.run=teacher")


def test_a_resumed_run_with_a_teacher_is_an_uninterrupted_one(place: Path, cli: Cli) -> None:
    words = ("train", "quickstart", *TAUGHT, f"train.teacher.run={place / 'teacher'}")
    assert cli(*words, "--out", "run").code == 0
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert cli("train", "--resume", "half").code == 0
    assert Path("half", "adapter.safetensors").read_bytes() == Path("run", "adapter.safetensors").read_bytes()


def test_a_dry_run_counts_the_weights_of_the_teacher(place: Path, cli: Cli) -> None:
    words = ("train", "quickstart", "--dry-run", "--json")
    plain, taught = (cli(*words, *more).json()["memory"] for more in ((), (f"train.teacher.run={place / 'teacher'}",)))
    assert taught["total"] - plain["total"] == taught["base"] - plain["base"] == pytest.approx(plain["base"], rel=0.05)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("quickstart", "train.teacher.run=nowhere"), "nowhere: no such run or adapter"),
        (("quickstart", "train.teacher={run: {teacher}, weight: 0}"), "train.teacher.weight"),
        (("digits_unet_lora", "train.teacher.run={teacher}"), ": does not apply to the task diffusion"),
        (("sums_roman_onehot", "train.teacher.run={teacher}"), "is a run of the task classification"),
        (("quickstart", "train.teacher.run={teacher}", "model.head=new", "data.name=two"), "has other classes"),
    ],
)
def test_what_cannot_teach_is_one_line(place: Path, cli: Cli, words: tuple[str, ...], message: str) -> None:
    write_digits(Path("two/train"), 30, ("one", "zero"))
    found = cli("train", *(word.replace("{teacher}", str(place / "teacher")) for word in words), "--out", "run")
    assert found.code == 2
    assert message in found.message
    assert not Path("run").exists()


def test_several_labels_are_taught(cli: Cli) -> None:
    write_colours(Path("photos"), 60)
    Path("colours.yaml").write_text(COLOURED.replace("steps: 60", "steps: 20"))
    assert cli("train", "colours.yaml", "--out", "teacher").code == 0
    done = cli("train", "colours.yaml", "train.teacher.run=teacher", "--out", "run", "--json")
    assert done.code == 0, done.err
    losses = [row["loss"] for row in metrics(Path("run")) if "loss" in row]
    assert 0 < losses[-1] < losses[0]


@pytest.mark.parametrize("head", ["frozen", "new"])
def test_texts_are_taught(head: str, cli: Cli) -> None:
    model = language_models.saved("Llama", Path("llama"))
    rows = [{"text": f"{a}+{b}={a + b}", "label": "odd" if (a + b) % 2 else "even"} for a in range(6) for b in range(5)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = of_texts(model, "sums.jsonl", "language: {length: 16}").replace('"}', f'", head: {head}}}', 1)
    Path("r.yaml").write_text(text)
    assert cli("train", "r.yaml", "train.steps=8", "train.optimizer.lr=0.05", "--out", "teacher").code == 0
    words = ("train", "r.yaml", "train.steps=30", "train.optimizer.lr=0.05")
    done = cli(*words, "train.teacher={run: teacher, temperature: 1}", "--out", "run", "--json")
    assert done.code == 0, done.err
    other = cli(
        *words, "train.teacher.run=teacher", f"model.head={'frozen' if head == 'new' else 'new'}", "--out", "no"
    )
    assert other.code == 2
    assert other.message.startswith("superlora: train.teacher.run: teacher has other ")
    losses = [row["loss"] for row in metrics(Path("run")) if "loss" in row]
    assert 0 <= losses[-1] < 0.5 * losses[0]  # the teacher itself has 0
