"""Adapters of language models as LoRAs of PEFT."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from tests import language_models
from tests.conftest import Cli

RECIPE = """
task: language
model: {name: "transformers:base"}
data: {name: sums.jsonl, validation: 0}
language: {length: 16}
adapter: {method: lora, rank: 2, targets: [q, v, mlp]}
train: {steps: 3, batch_size: 2, optimizer: {lr: 0.2}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", language_models.FAMILIES)
def test_an_exported_adapter_gives_the_same_tokens(family: str, cli: Cli, tmp_path: Path) -> None:
    language_models.saved(family, tmp_path / "base")
    rows = ({"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(5) for b in range(5))
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.yaml").write_text(RECIPE)
    assert cli("train", "r.yaml", "--out", "run").code == 0
    asked = ("generate", "run", "--prompt", "1+1=", "--max-tokens", "6", "--json")
    text = cli(*asked).json()["completions"][0]["text"]
    exported = cli("export", "run", "--to", "peft-lora", "--out", "peft", "--json").json()
    assert exported["error"] == pytest.approx(0, abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it adapts to GPT-2's layers
        model = AutoPeftModelForCausalLM.from_pretrained("peft")
    ids = torch.tensor([list(b"1+1=")])
    made = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=257)[0, 4:].tolist()
    assert bytes(made[: made.index(256)] if 256 in made else made).decode(errors="replace") == text
