"""The table of the formats: light to list, and open to formats from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from superlora_cli.errors import UsageError
from superlora_cli.files import write_atomic
from superlora_cli.formats.format import Format, Options
from superlora_cli.formats.known import FORMATS
from superlora_cli.formats.peft_lora import peft_files
from superlora_cli.formats.whole import Lora
from superlora_cli.opening.shapes_only import Stored
from tests.conftest import Cli, environment
from tests.makers import deltas_of, write_adapter


class Toy(Format):
    """A line of text for every target: its name and ‖ΔW‖."""

    description = "norms in a text"

    def write(self, adapter: Stored, out: Path, options: Options) -> dict[str, Any]:
        pairs = zip(adapter.targets, adapter.deltas(), strict=True)
        text = "".join(f"{target.name} {delta.norm():.3g}\n" for target, delta in pairs)
        write_atomic(out, text, force=options.force)
        return {"bytes": len(text), "load": f"open({str(out)!r}).read()"}


@pytest.fixture
def toy() -> Iterator[None]:
    """A format from outside."""
    FORMATS.add("toy", Toy())
    yield
    FORMATS.remove("toy")


@pytest.mark.usefixtures("toy")
def test_a_registered_format_can_be_exported_to(cli: Cli) -> None:
    file = write_adapter("lora.safetensors", "digits_lora")
    done = cli("export", file, "--to", "toy", "--out", "norms.txt", "--json").json()
    assert done == {"to": "toy", "output": "norms.txt", "bytes": done["bytes"], "load": "open('norms.txt').read()"}
    norms = dict(line.rsplit(" ", 1) for line in Path("norms.txt").read_text().splitlines())
    assert norms == {name: f"{delta.norm():.3g}" for name, delta in deltas_of(file).items()}
    assert "the file exists" in cli("export", file, "--to", "toy", "--out", "norms.txt").message
    assert cli("export", file, "--to", "toy", "--out", "norms.txt", "--force").code == 0
    assert (
        "toy is exact and takes no limit" in cli("export", file, "--to", "toy", "--rank", "2", "--out", "new").message
    )
    Path("taken").mkdir()
    assert "toy is a file" in cli("export", file, "--to", "toy", "--out", "taken").message
    assert "did you mean 'toy'?" in cli("export", file, "--to", "toys", "--out", "new").message


def test_without_it_the_others_are_named() -> None:
    names = "timm, kohya, comfyui, lycoris, peft-lora, peft-ia3, peft-oft, diffusers-lora, delta"
    with pytest.raises(UsageError, match=rf"unknown format 'onnx' \(one of {names}\)"):
        FORMATS.named("onnx", where="--to")


def test_the_formats_are_described_without_torch() -> None:
    script = (
        "import sys; from superlora_cli.cli.app import main; sys.argv = ['superlora', 'export', '--help']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'timm', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    wide = environment() | {"COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=wide, capture_output=True, text=True, check=True)
    shown = " ".join(done.stdout.replace("│", " ").split())
    assert all(f"{name} ({form.description})" in shown for name, form in FORMATS.items())


def test_a_module_whose_name_ends_like_the_heads_is_refused_for_peft() -> None:
    lora = Lora(torch.zeros(2, 4), torch.zeros(4, 2))
    head = {"classifier.weight": torch.zeros(2, 4)}
    with pytest.raises(UsageError, match=r"pre_classifier: PEFT would mistake it for the head \(classifier\)"):
        peft_files({"in_conv": lora}, modules=["in_conv", "pre_classifier", "classifier"], base="lowformer_b0",
                   head=head, errors={"in_conv": 0.0})  # fmt: skip
