"""Adapters of a few bits, from a recipe to a merged file: all from one small file, and the same ΔW everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from superlora_cli.adapter import store
from superlora_cli.adapter.header import BASE, CONFIG, SHAPES, sealed
from superlora_cli.weights.checksum import with_checksum
from superlora_cli.weights.small import read_safetensors, safetensors_bytes
from tests.conftest import Cli
from tests.makers import write_adapter

SMALL = ("quickstart", "train.steps=4", "train.checkpoint_every=2", "eval.every=2", "train.threads=1")
BITS = ("adapter={rank: 8, inner: {dim: 64}, bits: 4}",)


@pytest.mark.slow
def test_sixty_four_numbers_of_four_bits_are_a_file_of_a_kilobyte_that_is_enough(cli: Cli) -> None:
    done = cli("train", *SMALL, *BITS, "--out", "run", "--json").json()
    assert done["bytes"] == Path("run/adapter.safetensors").stat().st_size <= 1024
    counted = cli("count-params", *SMALL, *BITS, "--json").json()
    assert (counted["adapter"], counted["bytes"]) == (64, 32)
    assert "bits: 64 numbers of 4 bits, 32 bytes" in cli("count-params", *SMALL, *BITS, "--explain").out
    alone = Path("alone.safetensors")
    alone.write_bytes(Path("run/adapter.safetensors").read_bytes())
    about = cli("inspect", alone, "--json", "--delta", "delta.safetensors").json()
    assert about["numbers"] == {"bits": 4, "bytes": 32}
    assert about["recipe"]["train"]["steps"] == 4
    assert "of 4 bits, 32 bytes" in cli("inspect", alone).out
    assert cli("eval", alone, "--json").json()["metrics"]["accuracy"] == done["metrics"]["accuracy"]
    merged = cli("merge", alone, "--out", "merged.safetensors", "--json").json()
    assert merged["verified"]
    assert merged["max_abs_error"] < 1e-5
    cli("combine", alone, alone, "--weights", "0.5,0.5", "--to", "delta", "--out", "sum.safetensors")
    delta, total = load_file("delta.safetensors"), load_file("sum.safetensors")
    assert any(tensor.any() for tensor in delta.values())
    for name, tensor in delta.items():
        torch.testing.assert_close(total[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("train.ema=0.5",)])
def test_a_resumed_training_ends_with_the_same_bytes(more: tuple[str, ...], cli: Cli) -> None:
    words = (*SMALL, *BITS, *more)
    assert cli("train", *words, "--out", "whole").code == 0
    assert cli("train", *words, "train.steps=4", "--out", "half").code == 0
    for path in Path("half/checkpoints/step-000004").iterdir():
        path.unlink()
    Path("half/checkpoints/step-000004").rmdir()
    assert cli("train", *words, "--out", "half", "--resume", "half").code == 0
    assert Path("half/adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()


@pytest.mark.slow
def test_a_finished_adapter_is_compressed_and_tuned(cli: Cli) -> None:
    whole = write_adapter("whole.safetensors", "digits_lora", seed=1)
    errors = {}
    for bits in (2, 8, 16):
        done = cli("compress", whole, "--bits", str(bits), "--out", "small.safetensors", "--force", "--json").json()
        errors[bits] = done["error"]
        assert done["bytes"] == Path("small.safetensors").stat().st_size
        assert done["numbers"]["bytes"] == 6144 * bits // 8 + (8 if bits < 16 else 0)
        assert done["metrics_before"].keys() == done["metrics"].keys()
        assert len(done["weights"]) == 12
        assert cli("eval", "small.safetensors", "--json").json()["metrics"] == pytest.approx(done["metrics"])
    assert errors[2] > errors[8] > errors[16] > 0
    again = cli("compress", "small.safetensors", "--out", "less.safetensors")
    assert again.code == 2
    assert "already has 16 bits per number" in again.message
    words = ("--bits", "2", "--tune", "3", "--out", "tuned.safetensors", "--json")
    tuned = cli("compress", whole, *words, "train.batch_size=16").json()
    assert tuned["error"] != errors[2]
    assert store.load(Path("tuned.safetensors")).config.bits == 2
    assert cli("merge", "tuned.safetensors", "--out", "merged.safetensors", "--json").json()["verified"]


def test_an_extracted_adapter_may_have_few_bits(cli: Cli) -> None:
    assert cli("merge", write_adapter("one.safetensors", "digits_lora"), "--out", "tuned.safetensors").code == 0
    words = ("--base", "glyphs_vit", "--tuned", "tuned.safetensors", "--method", "lora", "--rank", "4", "--bits", "8")
    done = cli("extract", *words, "--out", "found.safetensors", "--json").json()
    assert 1e-4 < done["error"] < 0.05
    assert cli("inspect", "found.safetensors", "--json").json()["numbers"]["bits"] == 8


def test_a_budget_is_of_bytes_or_of_numbers(cli: Cli) -> None:
    found = cli("count-params", "--model", "glyphs_vit", "--bytes", "153", "--json").json()
    assert found["bytes"] == 153
    assert all(offer["bytes"] <= 153 for offer in found["offers"])
    assert max(offer["adapter"] for offer in found["offers"]) == 408
    assert (found["recommended"]["adapter"]["bits"], found["recommended"]["params"]) == (3, 408)
    found = cli("count-params", "--model", "glyphs_vit", "--bytes", "153", "--bits", "2", "--json").json()
    assert found["recommended"]["params"] == 612
    both = cli("count-params", "--model", "glyphs_vit", "--bytes", "153", "--budget", "9")
    assert both.code == 2
    assert "--bytes" in both.message
    assert "no setting has at most 9 bytes" in cli("count-params", "--method", "lora", "--bytes", "9").message


@pytest.mark.parametrize("command", [("eval",), ("merge", "--out", "m.safetensors")])
@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda tensors, said: said.update({CONFIG: '{"bits":4,"scales":[0.1]}'}), 3, "1 scales for 2 tensors"),
        (lambda tensors, said: said.update({CONFIG: '{"bits":4,"scales":[0.1,-1.0]}'}), 2, "scales [0.1, -1.0]"),
        (lambda tensors, said: said.update({CONFIG: '{"bits":12}'}), 2, "bits is 12"),
        (lambda tensors, said: said.update({SHAPES: '{"b0_k1_A1":[3],"b0_k1_A2":[3]}'}), 2, "bytes for 3 numbers"),
        (lambda tensors, said: said.pop(SHAPES), 2, "damaged metadata"),
        (lambda tensors, said: said.update({BASE: '{"sha256":"no digest"}'}), 2, "damaged metadata"),
    ],
)
def test_a_forged_file_of_few_bits_is_refused_for_what_it_says(
    command: tuple[str, ...], change: Any, code: int, says: str, cli: Cli
) -> None:
    whole = store.load(write_adapter("whole.safetensors", "digits_lora"))
    small = replace(whole.config, bits=4, scales=(0.1, 0.1))
    factors = {name: torch.zeros(tensor.shape, dtype=torch.uint8) for name, tensor in whole.factors.items()}
    replace(whole, config=small, factors=factors).save(Path("small.safetensors"), force=True)
    assert cli("inspect", "small.safetensors").code == 0
    tensors, said = read_safetensors(Path("small.safetensors"))
    change(tensors, said)
    sealed_again = sealed(with_checksum(tensors, said))
    Path("forged.safetensors").write_bytes(safetensors_bytes(tensors, sealed_again))
    result = cli(command[0], "forged.safetensors", *command[1:])
    assert result.code == code, result.err
    assert says in result.message


def test_a_changed_bit_is_found(cli: Cli) -> None:
    assert cli("compress", write_adapter("whole.safetensors", "digits_lora"), "--out", "small.safetensors").code == 0
    content = bytearray(Path("small.safetensors").read_bytes())
    content[-9] ^= 1
    Path("small.safetensors").write_bytes(content)
    assert "the checksum does not match" in cli("eval", "small.safetensors").message
