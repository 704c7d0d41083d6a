"""Adapters with frozen factors, F_in and spectral F live through files like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.test_train import lose_power, stop_at
from tests.conftest import Cli
from tests.makers import BASE, relative

SHORT = ("train.steps=3", "train.batch_size=16", "eval.every=3", "train.checkpoint_every=3")


@pytest.mark.parametrize(
    ("method", "knobs", "parameters"),
    [
        pytest.param("unilora", ("adapter.inner.dim=20",), 20, marks=pytest.mark.slow),
        pytest.param("vera", (), 12 * (64 + 4), marks=pytest.mark.slow),
        pytest.param("tinylora", ("adapter.rank=2",), 48, marks=pytest.mark.slow),
        pytest.param("fourierft", (), 12 * 41, marks=pytest.mark.slow),
        ("shira", ("adapter.projection=steepest",), 12 * 41),
        pytest.param("lora", ("adapter.rank=1", "adapter.init=activations"), 12 * 128, marks=pytest.mark.slow),
    ],
)
def test_training_evaluating_inspecting_and_merging(
    cli: Cli, tmp_path: Path, method: str, knobs: tuple[str, ...], parameters: int
) -> None:
    out, merged = str(tmp_path / "run"), str(tmp_path / "merged.safetensors")
    own = ("adapter.alpha=null", "adapter.rank=null", f"adapter.method={method}", *knobs)
    trained = cli("train", "digits_lora", *own, *SHORT, "--out", out, "--json").json()
    assert trained["params"]["adapter"] == parameters
    again = cli("eval", out, "--json").json()
    assert again["metrics"]["accuracy"] == pytest.approx(trained["metrics"]["accuracy"])
    told = cli("inspect", out, "--json").json()
    assert told["params"]["adapter"] == parameters
    assert cli("merge", out, "--out", merged, "--json").json()["verified"]
    counted = cli("count-params", "digits_lora", *own, "--json").json()
    assert counted["adapter"] == parameters
    assert counted["bytes"] == told["numbers"]["bytes"]


@pytest.mark.slow
def test_a_run_whose_positions_were_chosen_goes_on_with_them(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("adapter.alpha=null", "adapter.rank=null", "adapter.method=shira", "adapter.projection=steepest")
    words = ("train", "digits_lora", *own, *SHORT, "train.checkpoint_every=1", "train.threads=1")
    assert cli(*words, "--out", "whole").code == 0
    stop_at(monkeypatch, 3 + 2, lose_power)  # the first three are those that choose
    assert cli(*words, "--out", "run").code == 1
    assert cli(*words, "--out", "run", "--resume", "auto").code == 0
    assert Path("run/adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tinylora", "dora"])
def test_an_update_that_depends_on_the_base_needs_that_base(method: str, cli: Cli, tmp_path: Path) -> None:
    out, merged = str(tmp_path / "run"), str(tmp_path / "merged.safetensors")
    own = ("adapter.alpha=null", "adapter.rank=2", f"adapter.method={method}")
    assert cli("train", "digits_lora", *own, *SHORT, "--out", out).code == 0
    assert cli("merge", out, "--out", merged).code == 0
    # merged weights are others
    result = cli("merge", out, "--base", merged, "--out", str(tmp_path / "other.safetensors"), "--allow-base-mismatch")
    assert result.code == 3
    assert "not the base that the adapter was trained on" in result.err
    back = str(tmp_path / "base.safetensors")
    assert cli("merge", out, "--base", merged, "--out", back, "--unmerge", "--json").json()["verified"]
    assert relative(load_file(back), load_file(BASE)) < 1e-6


NONLINEAR = ("train", "digits_lora", "adapter.method=loda", "adapter.scaling=null", *SHORT)


@pytest.mark.slow
def test_a_nonlinear_update_is_trained_resumed_and_evaluated(cli: Cli) -> None:
    own = (*NONLINEAR, "train.checkpoint_every=1")
    assert cli(*own, "--out", "whole").code == 0
    result = Path("whole/adapter.safetensors").read_bytes()
    shutil.rmtree("whole/checkpoints/step-000003")
    assert cli(*own, "--out", "whole", "--resume", "whole").code == 0
    assert Path("whole/adapter.safetensors").read_bytes() == result
    scored = cli("eval", "whole", "--json").json()["metrics"]["accuracy"]
    assert scored == json.loads(Path("whole/run.json").read_text())["metrics"]["accuracy"]


def test_a_nonlinear_update_is_never_merged(cli: Cli, tmp_path: Path) -> None:
    told = cli(*NONLINEAR, "train.steps=1", "--out", "whole")
    assert told.code == 0
    assert "the update is B σ(A x) with σ = gelu: there is no ΔW to merge or export" in told.err
    shown = cli("inspect", "whole")
    assert "activation gelu" in shown.out
    assert "there is no ΔW" in shown.out
    for words in (
        ("merge", "whole", "--out", "m.safetensors"),
        ("merge", "whole", "--base", str(BASE), "--out", "m.safetensors"),
        ("export", "whole", "--to", "peft-lora", "--out", "m"),
        ("export", "whole", "--to", "timm", "--out", "m.safetensors"),
        ("export", "whole", "--to", "delta", "--out", "m.safetensors"),
        ("combine", "whole", "whole", "--weights", "1,1", "--out", "m.safetensors"),
        ("compress", "whole", "--bits", "4", "--out", "m.safetensors"),
        ("inspect", "whole", "--norms"),
    ):
        refused = cli(*words)
        assert refused.code == 2, words
        assert "B σ(A x) with σ = gelu has no ΔW, so it cannot be merged" in refused.message
    assert not list(tmp_path.glob("m*"))


def test_a_nonlinear_update_is_counted_and_explained(cli: Cli) -> None:
    words = ("count-params", "--method", "loda", "--rank", "2")
    assert (
        cli(*words, "--json").json()["adapter"]
        == cli("count-params", "--method", "lora", "--rank", "2", "--json").json()["adapter"]
    )
    assert "there is no ΔW to merge or export" in cli(*words, "--explain").out
    refused = cli("count-params", "--method", "lorta", "--activation", "relu")
    assert refused.code == 2
    assert "--activation" in refused.message
