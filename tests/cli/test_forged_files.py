"""Files that were altered, or made to fit: found by what they say and by their checksums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from superlora_cli.weights.checksum import digest_tensors, with_checksum
from superlora_cli.weights.small import read_safetensors, safetensors_bytes
from tests.conftest import Cli


@pytest.mark.parametrize("command", [("eval",), ("inspect",), ("merge", "--out", "m.safetensors")])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, said: next(iter(tensors.values())).view(-1)[:1].fill_(float("nan")), "holds NaN or Inf"),
        (lambda tensors, said: tensors.update({k: t.long() for k, t in tensors.items()}), "has dtype torch.int64"),
        (lambda tensors, said: said.update({"superlora.base": "7"}), "base is 7, but should be an object"),
        (lambda tensors, said: said.update({"superlora.base": '{"name": 1}'}), "damaged metadata: 'sha256'"),
        (lambda tensors, said: said.update({"superlora.classes": "[7]"}), "7 should be text"),
        (lambda tensors, said: said.update({"superlora.config": "[" * 100_000}), "damaged metadata"),
    ],
)
def test_an_adapter_that_was_made_to_fit_is_refused_for_what_it_says(
    command: tuple[str, ...], change: Any, says: str, adapter: Path, cli: Cli
) -> None:
    tensors, said = read_safetensors(adapter)
    change(tensors, said)
    Path("forged.safetensors").write_bytes(safetensors_bytes(tensors, with_checksum(tensors, said)))
    result = cli(command[0], "forged.safetensors", *command[1:])
    assert result.code == 2
    assert says in result.message


def test_a_changed_knob_in_the_metadata_is_found_and_a_checksum_of_tensors_alone_still_counts(
    adapter: Path, cli: Cli
) -> None:
    content = adapter.read_bytes()
    assert content.count(b'\\"alpha\\": 0.4') == 1
    Path("changed.safetensors").write_bytes(content.replace(b'\\"alpha\\": 0.4', b'\\"alpha\\": 0.5'))
    assert "changed.safetensors: the checksum does not match" in cli("eval", "changed.safetensors").message
    tensors, said = read_safetensors(adapter)
    old = safetensors_bytes(tensors, {**said, "superlora.checksum": digest_tensors(tensors)})
    Path("old.safetensors").write_bytes(old)
    assert cli("inspect", "old.safetensors").code == 0


def test_a_changed_bit_of_a_trained_base_is_found(cli: Cli) -> None:
    words = ("adapter=null", "train.optimizer.lr=0.001", "train.steps=1")
    assert cli("train", "quickstart", *words, "--out", "run", "--quiet").code == 0
    file = Path("run/model.safetensors")
    assert cli("merge", "run", "--out", "m.safetensors").code == 2  # a file of weights as it is
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    result = cli("eval", "run")
    assert result.code == 2
    assert "run/model.safetensors: the checksum does not match the contents of the file" in result.message


def test_names_from_a_file_do_not_reach_a_terminal_as_commands(adapter: Path, cli: Cli) -> None:
    tensors, said = read_safetensors(adapter)
    said["superlora.classes"] = json.dumps(["\x1b[2J"] * 10)
    tensors["head.a\nb"] = torch.ones(2)
    Path("odd.safetensors").write_bytes(safetensors_bytes(tensors, with_checksum(tensors, said)))
    shown = cli("inspect", "odd.safetensors")
    assert shown.code == 0
    assert "\x1b" not in shown.out
    assert r"\x1b[2J" in shown.out
    assert r"a\nb" in cli("eval", "odd.safetensors").message
