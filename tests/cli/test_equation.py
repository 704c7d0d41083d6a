"""Adapters with frozen factors, F_in and spectral F live through files like any other."""

from __future__ import annotations

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
        ("unilora", ("adapter.inner.dim=20",), 20),
        ("vera", (), 12 * (64 + 4)),
        ("tinylora", ("adapter.rank=2",), 48),
        ("fourierft", (), 12 * 41),
        ("shira", ("adapter.projection=steepest",), 12 * 41),
        ("lora", ("adapter.rank=1", "adapter.init=activations"), 12 * 128),
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


def test_a_run_whose_positions_were_chosen_goes_on_with_them(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("adapter.alpha=null", "adapter.rank=null", "adapter.method=shira", "adapter.projection=steepest")
    words = ("train", "digits_lora", *own, *SHORT, "train.checkpoint_every=1", "train.threads=1")
    assert cli(*words, "--out", "whole").code == 0
    stop_at(monkeypatch, 3 + 2, lose_power)  # the first three are those that choose
    assert cli(*words, "--out", "run").code == 1
    assert cli(*words, "--out", "run", "--resume", "auto").code == 0
    assert Path("run/adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()


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
