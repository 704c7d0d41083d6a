"""What an adapter changes can be looked at, weight by weight."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli, environment
from tests.makers import BASE, deltas_of, write_adapter, write_base


@pytest.mark.parametrize("recipe", ["digits_lora", "quickstart", "digits_unet_lora"])
def test_norms_are_those_of_the_update_and_of_the_base(recipe: str, cli: Cli) -> None:
    file = write_adapter("a.safetensors", recipe, scale=0.25)
    found = cli("inspect", file, "--norms", "--json").json()["norms"]
    deltas = deltas_of(file)
    assert [row["name"] for row in found["targets"]] == list(deltas)
    for row in found["targets"]:
        assert row["norm"] == pytest.approx(float(deltas[row["name"]].norm()), rel=1e-5)
    assert found["relative"] == pytest.approx(0.25, rel=1e-4)
    assert found["why_not"] is None
    if recipe != "digits_unet_lora":
        base = load_file(BASE)["blocks.0.attn.qkv.weight"][:64]
        row = found["targets"][0]
        assert row["relative"] == pytest.approx(row["norm"] / float(base.norm()), rel=1e-5)
    shown = cli("inspect", file, "--norms").out
    assert found["targets"][-1]["name"] in shown
    assert "0.2500" in shown


def test_without_its_base_an_adapter_still_has_norms(cli: Cli) -> None:
    base = write_base("base.safetensors", torch.bfloat16)
    file = write_adapter("a.safetensors", "digits_lora", f"model.checkpoint={base}")
    assert cli("inspect", file, "--norms", "--json").json()["norms"]["relative"] == pytest.approx(0.1, rel=1e-2)
    base.unlink()
    found = cli("inspect", file, "--norms", "--json").json()["norms"]
    assert found["relative"] is None
    assert "base.safetensors" in found["why_not"]
    assert found["norm"] > 0
    assert "no base to compare with" in cli("inspect", file, "--norms").out


def test_the_delta_is_the_one_that_is_exported(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "quickstart")
    assert cli("inspect", file, "--delta", "one.safetensors", "--json").json()["delta"] == "one.safetensors"
    assert cli("export", file, "--to", "delta", "--out", "two.safetensors").code == 0
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    refused = cli("inspect", file, "--delta", "one.safetensors")
    assert refused.code == 2
    assert "the file exists" in refused.message
    assert cli("inspect", file, "--delta", "one.safetensors", "--force").code == 0


@pytest.mark.slow
def test_looking_at_a_file_needs_no_model_library(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora").resolve()
    program = (
        f"import sys; sys.argv = ['superlora', 'inspect', {str(file)!r}]\n"
        "from superlora_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'timm', 'diffusers', 'tensorly'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
