"""A checkpoint is resumed from if it is what was written; else an earlier one is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from superlora_cli.errors import UsageError
from superlora_cli.training.checkpoints import damage, load_state
from tests.conftest import QUICK, Cli


@pytest.fixture
def run(trained: Path, cli: Cli) -> Path:
    """A finished run with checkpoints at steps 3 and 6, as if it had been killed before it ended."""
    shutil.copytree(trained, "run")
    Path("run/adapter.safetensors").unlink()
    return Path("run")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SPOILED: dict[str, Callable[[Path], object]] = {
    "a bit of the state": lambda folder: flipped(folder / "state.pt"),
    "a bit of the adapter": lambda folder: flipped(folder / "adapter.safetensors"),
    "the state cut": lambda folder: (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:-500]),
    "the state gone": lambda folder: (folder / "state.pt").unlink(),
    "COMPLETE emptied": lambda folder: (folder / "COMPLETE").write_text(""),
    "COMPLETE of another step": lambda folder: shutil.copy(folder.with_name("step-000003") / "COMPLETE", folder),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(
    spoil: Callable[[Path], object], run: Path, trained: Path, cli: Cli
) -> None:
    newest = run / "checkpoints/step-000006"
    assert damage(newest) is None
    spoil(newest)
    result = cli("train", *QUICK, "--resume", "run", "--quiet")
    assert result.code == 0, result.err
    assert "run/checkpoints/step-000006 is skipped: " in result.err
    assert "step-000006 is skipped: " in (run / "log.txt").read_text()
    assert (run / "adapter.safetensors").read_bytes() == (trained / "adapter.safetensors").read_bytes()
    assert damage(newest) is None  # written anew


def test_if_all_checkpoints_are_damaged_training_does_not_restart(run: Path, cli: Cli) -> None:
    for checkpoint in run.glob("checkpoints/step-*"):
        flipped(checkpoint / "state.pt")
    result = cli("train", *QUICK, "--resume", "auto", "--out", "run")
    assert result.code == 2
    assert "run: holds no intact checkpoint (run/checkpoints/step-000006 is skipped: state.pt has" in result.message


def test_old_checkpoints_without_checksums_are_resumed(run: Path, trained: Path, cli: Cli) -> None:
    (run / "checkpoints/step-000006/COMPLETE").write_text("6\n")
    assert cli("train", *QUICK, "--resume", "run").code == 0
    assert (run / "adapter.safetensors").read_bytes() == (trained / "adapter.safetensors").read_bytes()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path("hacked").touch, ()  # type: ignore[return-value]


@pytest.mark.parametrize("state", [Hostile(), {"progress": Hostile()}, {}, [], {"progress": {}, "random": []}])
def test_loading_a_state_runs_no_code_and_restores_everything(state: object, cli: Cli) -> None:
    torch.save(state, "state.pt")
    with pytest.raises(UsageError, match=r"state\.pt: (unreadable|holds no)"):
        load_state(Path())
    assert not Path("hacked").exists()


def test_the_sums_are_those_of_sha256sum(run: Path) -> None:
    import hashlib

    folder = run / "checkpoints/step-000006"
    step, *sums = (folder / "COMPLETE").read_text().splitlines()
    assert step == "6"
    for line in sums:
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert {line.split("  ")[1] for line in sums} == {"adapter.safetensors", "state.pt"}
