"""A run that draws from every generator there is, stopped and resumed, by any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_train import lose_power, stop_at, uninterrupted
from tests.conftest import QUICK, Cli

FEW = "data={name: glyphs, train_images: 96, eval_images: 20, augment: shift}"
DRAWN = (FEW, "data.rand_augment=rand-m9-mstd0.5", "data.random_erasing=0.5", "data.mixup=0.2", "data.cutmix=1.0",
         "data.balance=true", "train.batch_size=16")  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_with_workers_equals_an_uninterrupted_one_with_or_without(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*DRAWN, "data.workers=2")
    with uninterrupted(tmp_path / "run", *words):
        stop_at(monkeypatch, 5, lose_power)
        assert cli("train", *QUICK, *words, "--out", "run").code != 0
        assert cli("train", *QUICK, *words, "--out", "run", "--resume", "auto").code == 0
    assert cli("train", *QUICK, *DRAWN, "--out", "alone").code == 0
    found, alone = (load_file(f"{name}/adapter.safetensors") for name in ("run", "alone"))
    assert all(torch.equal(alone[name], tensor) for name, tensor in found.items())


def test_mixed_images_are_none_to_draw(cli: Cli) -> None:
    result = cli("train", "digits_unet_lora", "data.mixup=0.2")
    assert result.code == 2
    assert result.message.startswith("superlora: data.mixup=0.2: does not apply to the task diffusion")
