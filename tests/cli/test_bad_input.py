"""Whatever is wrong is said in one line, with where and what would be right, and nothing is lost or overwritten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from superlora_cli.errors import RunError, UsageError
from superlora_cli.files import system_errors
from superlora_cli.models.embedded import ASSETS
from superlora_cli.training.checkpoints import load_state
from superlora_cli.training.run import RunFolder
from tests.conftest import QUICK, Cli, contents, environment

RECIPE = """\
model: {name: glyphs_vit, head: frozen}
data: {name: digits}
adapter: {method: lorta, targets: [q, v], rank: 2}
train:
  steps: 2
  optimizer: {lr: 0.1}
"""
BASE = ASSETS / "glyphs_vit.safetensors"


@pytest.fixture
def work(cli: Cli, tmp_path: Path, trained: Path, adapter: Path) -> Path:
    """A folder with a recipe, a run, and files that are not what they seem."""
    Path("recipe.yaml").write_text(RECIPE)
    shutil.copytree(trained, "run")
    Path("photos").mkdir()
    Path("photos/cat.txt").write_text("mine")
    Path("empty").mkdir()
    Path("file").write_text("a file")
    content = adapter.read_bytes()
    Path("truncated.safetensors").write_bytes(content[:-40])
    Path("tampered.safetensors").write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    Path("newer.safetensors").write_bytes(content.replace(b'format_version":"1"', b'format_version":"9"'))
    Path("damaged.safetensors").write_bytes(content.replace(b'superlora.targets":"{', b'superlora.targets":"['))
    some = {"weight": torch.ones(2)}
    save_file(some, "plain.safetensors")
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2)}, "peft.safetensors")
    save_file({"lora_unet_q.lora_down.weight": torch.ones(2)}, "kohya.safetensors")
    base = load_file(BASE)
    save_file({name: tensor.bfloat16() for name, tensor in base.items()}, "bf16.safetensors")
    name = "blocks.0.attn.qkv.weight"
    base[name][0, 0] += 1e-3
    save_file(base, "other.safetensors")
    del base[name]
    save_file(base, "part.safetensors")
    Path("pickle.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    return tmp_path


def train(*words: str) -> tuple[str, ...]:
    return ("train", "recipe.yaml", *words)


RUN = ("train", *QUICK)
CASES: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    # the command line
    "unknown command": (("trian", "recipe.yaml"), 2, ("trian",)),
    "unknown option": (train("--frobnicate"), 2, ("--frobnicate",)),
    "missing argument": (("train",), 2, ("recipe",)),
    "unknown list": (("ls", "bogus"), 2, ("bogus", "recipes")),
    "missing option": (("merge", "run"), 2, ("--out",)),
    # recipes
    "missing recipe": (("train", "quikstart"), 2, ("quikstart", "did you mean 'quickstart'?", "superlora ls recipes")),
    "missing recipe file": (("validate", "no/such.yaml"), 2, ("no/such.yaml", "no such file")),
    "recipe is a folder": (("train", "photos"), 2, ("photos", "is a folder")),
    "recipe is no text": (("train", "plain.safetensors"), 2, ("plain.safetensors",)),
    "unknown override": (train("adapter.rnk=2"), 2, ("adapter.rnk=2", "unknown key 'rnk'", "did you mean 'rank'?")),
    "override without value": (train("adapter.rank"), 2, ("adapter.rank", "expected KEY=VALUE", "adapter.rank=2")),
    "rank above a mode": (train("adapter.rank=40"), 2, ("adapter.rank", "40", "37")),
    "an order beyond any use": (train("adapter.order=9999999999"), 2, ("adapter.order", "9999999999", "at most 64")),
    "splits beyond any use": (train(f"adapter.splits={'9' * 50}"), 2, ("adapter.splits", "9999", "at most 64")),
    "an alignment beyond any use": (train(f"adapter.align={'9' * 50}"), 2, ("adapter.align", "at most 1,048,576")),
    "more groups than elements": (train("adapter.groups=1000000"), 2, ("adapter.groups", "1000000", "49,152")),
    "target that matches nothing": (
        train('adapter.targets=["blocks.*.atn.qkv[q]"]'), 2,
        ("blocks.*.atn.qkv[q]", "the nearest names are blocks.5.attn.qkv"),
    ),
    "unknown model": (train("model.name=glyph_vit"), 2, ("model.name", "glyph_vit", "did you mean 'glyphs_vit'?")),
    "arguments that timm refuses": (train("model.kwargs.bogus=1"), 2, ("model.kwargs", "bogus")),
    "arguments that break a model": (train("model.kwargs.act_layer=nope"), 2, ("model.kwargs", "KeyError: 'nope'")),
    "an image of no sides": (train("model.kwargs.img_size=[]"), 2, ("model.kwargs", "IndexError", "out of range")),
    "unknown data set": (train("data.name=digit"), 2, ("data.name", "digit", "did you mean 'digits'?")),
    "data set that is not there": (train("data.name=torch/cifar10"), 2, ("torch/cifar10", "data.download=true")),
    "unknown task": (train("task=diffusion"), 2, ("task", "diffusion", "classification")),
    "unknown optimizer": (train("train.optimizer.name=Adm"), 2, ("train.optimizer.name", "'Adm'", "mean 'Adam'?")),
    "optimizer argument": (train("train.optimizer.momntum=1"), 2, ("train.optimizer", "momntum")),
    "unknown schedule": (train("train.scheduler.name=OneCycle"), 2, ("train.scheduler.name", "OneCycleLR")),
    "schedule argument": (train("train.scheduler.bogus=1"), 2, ("train.scheduler", "bogus")),
    "absent device": (train("train.device=mps"), 2, ("train.device", "mps", "auto")),
    "precision of a GPU": (train("train.precision=fp16", "train.device=cpu"), 2, ("train.precision", "fp16", "bf16")),
    # where to write
    "output with other files": (train("--out", "photos"), 2, ("photos", "the folder is not empty", "--force")),
    "output with a run": (train("--out", "run"), 2, ("run", "--resume auto", "--force")),
    "output is a file": (train("--out", "file"), 2, ("file: cannot write", "choose a folder")),
    "output below a file": (train("--out", "file/run"), 2, ("file/run: cannot write", "choose a folder")),
    "output nobody may write": (train("--out", "/proc/run"), 2, ("/proc/run: cannot write",)),
    "resume of a missing folder": (train("--resume", "nowhere"), 2, ("nowhere", "no such run folder", "--resume auto")),
    "resume of another folder": (train("--resume", "run", "--out", "other"), 2, ("other, run", "give one of them")),
    "resume of no run": (train("--resume", "photos"), 2, ("photos", "holds no intact checkpoint")),
    "automatic resume of no run": (train("--resume", "auto", "--out", "photos"), 2, ("photos", "holds no run")),
    "resume with another rank": ((*RUN, "adapter.rank=3", "--resume", "run"), 2, ("not those that",)),
    "resume with another optimizer": (
        (*RUN, "train.optimizer.name=SGD", "--resume", "run"), 2, ("train.optimizer.name=SGD", "AdamW"),
    ),
    "resume beyond the end": ((*RUN, "train.steps=4", "--resume", "run"), 2, ("train.steps=4", "step 6")),
    "force with a bad optimizer": ((*RUN, "train.optimizer.name=Adm", "--out", "run", "--force"), 2, ("Adm",)),
    "force with a bad rank": ((*RUN, "adapter.rank=99", "--out", "run", "--force"), 2, ("99", "9")),
    # adapters
    "missing run": (("eval", "nowhere"), 2, ("nowhere", "no such run or adapter")),
    "folder without run": (("eval", "photos"), 2, ("photos", "adapter.safetensors")),
    "truncated": (("eval", "truncated.safetensors"), 2, ("truncated.safetensors", "not a valid safetensors file")),
    "tampered": (("eval", "tampered.safetensors"), 2, ("tampered.safetensors", "checksum")),
    "newer format": (("inspect", "newer.safetensors"), 2, ("newer.safetensors", "format 9", "update superlora")),
    "damaged metadata": (("inspect", "damaged.safetensors"), 2, ("damaged.safetensors", "checksum")),
    "no safetensors": (("eval", "recipe.yaml"), 2, ("recipe.yaml", "is a recipe, not a run or an adapter")),
    "plain weights": (("eval", "plain.safetensors"), 2, ("plain.safetensors", "not a superlora adapter")),
    "PEFT": (("eval", "peft.safetensors"), 2, ("peft.safetensors", "a PEFT adapter", "superlora import")),
    "Kohya": (("merge", "kohya.safetensors", "--out", "new.safetensors"), 2, ("kohya.safetensors", "Kohya")),
    "evaluation with a bad key": (("eval", "run", "eval.batchsize=2"), 2, ("eval.batchsize=2", "batch_size")),
    "base of other bytes": (
        ("eval", "run", "model.checkpoint=other.safetensors"), 3,
        ("not the base", "glyphs_vit", "--allow-base-mismatch"),
    ),
    "base of other bytes, merging": (
        ("merge", "run", "--base", "other.safetensors", "--out", "new.safetensors"), 3, ("not the base", "sha256"),
    ),
    "base of another dtype": (
        ("eval", "run", "model.checkpoint=bf16.safetensors"), 3, ("bfloat16", "float32", "load glyphs_vit as float32"),
    ),
    "base of another architecture": (
        ("merge", "run", "--base", "part.safetensors", "--out", "new.safetensors"), 3,
        ("part.safetensors", "blocks.0.attn.qkv.weight", "missing"),
    ),
    "base that is missing": (("merge", "run", "--base", "no.pt", "--out", "n.safetensors"), 2, ("no.pt: no such",)),
    "base that would run code": (
        ("merge", "run", "--base", "pickle.pt", "--out", "new.safetensors"), 2, ("pickle.pt", "not weights"),
    ),
    # merging
    "merge over a file": (("merge", "run", "--out", "plain.safetensors"), 2, ("plain.safetensors", "--force")),
    "merge into nowhere": (("merge", "run", "--out", "no/new.safetensors"), 2, ("no: no such folder",)),
    "merge to an unknown dtype": (("merge", "run", "--out", "n.pt", "--dtype", "int8"), 2, ("'int8'", "bfloat16")),
    "unmerge without the merged file": (("merge", "run", "--out", "n.safetensors", "--unmerge"), 2, ("--base",)),
}  # fmt: skip


@pytest.mark.parametrize(("words", "code", "mentions"), CASES.values(), ids=CASES)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    words: tuple[str, ...], code: int, mentions: tuple[str, ...], work: Path, cli: Cli
) -> None:
    before = contents(work)
    result = cli(*words)
    assert (result.code, result.out) == (code, "")
    assert result.err == result.message + "\n"
    for mention in mentions:
        assert mention in result.message
    assert contents(work) == before
    assert not list(Path("runs").glob("*"))


def test_bad_input_under_json_is_one_object_for_every_command_and_code(work: Path, cli: Cli) -> None:
    before = contents(work)
    for words, code, mentions in {(case[0][0], case[1]): case for case in CASES.values()}.values():
        result = cli(*words, "--json")
        assert (result.code, result.err) == (code, "")
        error = result.json()["error"]
        assert error.keys() == {"code", "message", "where", "hint"}
        assert error["code"] == code
        for mention in mentions:
            assert mention in "{where}: {message} ({hint})".format(**error)
    assert contents(work) == before


RECIPES = {
    "syntax": ("{name: digits}", "{name: digits", ("bad.yaml:3:8", "expected ',' or '}'", "from line 2")),
    "unquoted pattern": ("[q, v]", "[blocks.*.attn.qkv[q]]", ("bad.yaml:3:", 'quote patterns: "blocks.*.attn.qkv[q]"')),
    "tab": ("  steps: 2", "\tsteps: 2", ("bad.yaml:5:1", "indent with spaces")),
    "duplicate key": ("  steps: 2", "  steps: 2\n  steps: 3", ("bad.yaml:6:3", "duplicate key 'steps'", "line 5")),
    "unknown key": ("  steps: 2", "  stepz: 2", ("bad.yaml:5: train.stepz", "unknown key", "did you mean 'steps'?")),
    "key of another section": ("  steps: 2", "  steps: 2\n  rank: 2", ("bad.yaml:6: train.rank", "under adapter:")),
    "wrong type": ("steps: 2", 'steps: "2"', ("bad.yaml:5: train.steps", "whole number", "'2'", "write 2, without")),
    "missing key": ("  steps: 2\n", "", ("bad.yaml:4: train.steps", "missing")),
    "out of range": ("steps: 2", "steps: 0", ("bad.yaml:5: train.steps", "≥ 1", "got 0")),
    "knobs that do not fit": ("rank: 2", "rank: 2, order: 1", ("bad.yaml:3: adapter.rank", "order 1")),
    "unknown method": ("lorta", "lora3", ("bad.yaml:3: adapter.method", "lora3", "lora")),
    "not finite": ("lr: 0.1", "lr: .inf", ("bad.yaml:6:", "not finite")),
    "python tag": ("steps: 2", "steps: !!python/name:os.system x", ("bad.yaml:5:", "tag")),
}


@pytest.mark.parametrize("command", ["train", "validate"])
@pytest.mark.parametrize(("old", "new", "mentions"), RECIPES.values(), ids=RECIPES)
def test_what_is_wrong_in_a_recipe_is_named_by_file_and_line(
    command: str, old: str, new: str, mentions: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    assert RECIPE.count(old) == 1
    Path("bad.yaml").write_text(RECIPE.replace(old, new))
    result = cli(command, "bad.yaml")
    assert result.code == 2
    for mention in mentions:
        assert mention in result.message
    assert list(contents(tmp_path)) == ["bad.yaml"]


def test_everything_wrong_in_a_recipe_is_said_at_once(cli: Cli) -> None:
    Path("bad.yaml").write_text(RECIPE.replace("rank: 2", "rnk: 2").replace("steps: 2", "steps: 0"))
    result = cli("validate", "bad.yaml")
    assert result.code == 2
    assert len(result.err.splitlines()) == 2
    assert "bad.yaml:3: adapter.rnk" in result.err
    assert "bad.yaml:5: train.steps" in result.err


def test_a_folder_that_another_process_writes_is_refused(work: Path, cli: Cli) -> None:
    before = contents(work)
    with Path("run/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (("--resume", "run"), ("--out", "run", "--force"), ("--out", "run", "--resume", "auto")):
            result = cli(*RUN, *words)
            assert result.code == 2
            assert "run: another run is writing to it (wait for it, or choose another --out)" in result.message
    assert contents(work) == before
    assert cli(*RUN, "--resume", "run").code == 0  # the lock went with its holder


def test_the_lock_holds_against_another_process(cli: Cli, tmp_path: Path) -> None:
    hold = "import fcntl; f = open('.lock', 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    (tmp_path / "run").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holder: Any = subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path / "run", env=environment(), **pipes)
    try:
        assert holder.stdout.readline() == "held\n"
        assert cli(*RUN, "--out", "run").code == 2
    finally:
        holder.kill()
        holder.communicate()
    assert cli(*RUN, "--out", "run").code == 0


def test_a_mismatched_base_is_accepted_where_asked_for(work: Path, cli: Cli) -> None:
    words = ("eval", "run", "model.checkpoint=other.safetensors", "--allow-base-mismatch", "--json")
    assert cli(*words).json()["n"] == 500


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_run_with_its_last_checkpoint_whole(
    number: int, work: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, written = os.fsync, iter(range(10_000))
    limit = 6  # recipe.yaml, run.json and the three files of the first checkpoint, then part of the second's

    def fsync(handle: int) -> None:
        if next(written) > limit:
            raise OSError(number, os.strerror(number))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    result = cli(*RUN, "--out", "new")
    assert result.code == 1
    assert "the disk is full (free some space; nothing was overwritten)" in result.message
    assert [path.name for path in sorted(Path("new/checkpoints").iterdir())] == ["step-000003"]
    assert load_state(Path("new/checkpoints/step-000003"))["progress"]["step"] == 3
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert cli(*RUN, "--resume", "new").code == 0
    assert Path("new/adapter.safetensors").read_bytes() == Path("run/adapter.safetensors").read_bytes()


def test_a_full_disk_leaves_the_file_that_was_to_be_overwritten(
    work: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(work)
    monkeypatch.setattr(os, "fsync", fsync)
    result = cli("merge", "run", "--out", "plain.safetensors", "--force")
    assert result.code == 1
    assert "plain.safetensors: the disk is full" in result.message
    assert contents(work) == before


def test_a_folder_that_vanishes_before_the_run_has_begun_does_not_hide_why_it_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")

    def ended_while_the_folder_vanished() -> None:
        with run.opened():
            shutil.rmtree(run.path)
            raise RunError("the reason")

    with pytest.raises(RunError, match="the reason"):
        ended_while_the_folder_vanished()


@pytest.mark.parametrize("number", [errno.EIO, errno.EFBIG])
def test_an_error_of_the_device_is_no_mistake_of_the_user(number: int, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"cannot write: {os.strerror(number)}"), system_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_is_named_whichever_file_it_hits(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for path, write in (
        (run.metrics, lambda: run.record(1, {"loss": 0.5})),
        (tmp_path / "log.txt", lambda: run.log("x")),
    ):
        path.symlink_to("/dev/full")
        with pytest.raises(RunError, match=f"{path}: the disk is full"):
            write()


def test_an_exploding_run_names_step_rate_and_the_last_good_checkpoint(cli: Cli) -> None:
    sgd = ("train.optimizer={name: SGD, lr: 0.001}", "train.scheduler={name: constant}", "train.keep=1")
    assert cli(*RUN, *sgd, "train.steps=3", "--out", "run").code == 0
    kept = contents(Path("run/checkpoints"))
    for words in (("train.log_every=1",), ("eval.every=1",), ("train.checkpoint_every=1",)):
        exploding = (sgd[0].replace("0.001", "1e+30"), *sgd[1:], "train.steps=9", "eval.every=9", *words)
        result = cli(*RUN, *exploding, "train.checkpoint_every=9", *words, "--resume", "run")
        assert result.code == 1
        assert "NaN or Inf at step" in result.message
        assert "learning rate 1e+30" in result.message
        assert "the last good checkpoint is run/checkpoints/step-00000" in result.message
        assert json.loads(Path("run/run.json").read_text())["status"] == "failed"
        if words != ("train.checkpoint_every=1",):
            assert contents(Path("run/checkpoints")) == kept
    (last,) = Path("run/checkpoints").iterdir()
    weights = load_state(last)["tensors"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_merge_that_is_not_finite_is_refused(work: Path, cli: Cli) -> None:
    base = load_file(BASE)
    base["blocks.0.attn.qkv.weight"][0, 0] = float("nan")
    save_file(base, "nan.safetensors")
    words = ("--base", "nan.safetensors", "--allow-base-mismatch", "--no-verify", "--out", "new.safetensors")
    result = cli("merge", "run", *words)
    assert result.code == 1
    assert "blocks.0.attn.qkv.weight: the merged weight is not finite" in result.message
    assert not Path("new.safetensors").exists()


def test_debug_shows_the_traceback(cli: Cli) -> None:
    with pytest.raises(UsageError):
        cli("train", "nowhere", "--debug")


def test_no_words_are_a_call_for_help(cli: Cli) -> None:
    result = cli()
    assert result.code == 0
    assert "count-params" in result.out


def test_outputs_that_are_no_numbers_are_not_judged(work: Path, cli: Cli) -> None:
    base = load_file(BASE)
    base["norm.weight"][:] = float("inf")
    save_file(base, "inf.safetensors")
    result = cli("eval", "run", "model.checkpoint=inf.safetensors")
    assert result.code == 1
    assert "glyphs_vit: the model gives NaN or Inf for 500 of 500 images" in result.message
