"""Adapters of language models as LoRAs of PEFT."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, MambaConfig

from superlora_cli.models.embedded import ASSETS
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

HARNESS = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
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


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", *language_models.ENCODERS])
def test_an_exported_classifier_finds_the_same_classes(family: str, cli: Cli, tmp_path: Path) -> None:
    language_models.saved(family, tmp_path / "base")
    rows = [{"text": "abc"[n % 3] * (1 + n % 5), "label": n % 3} for n in range(30)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.yaml").write_text(RECIPE)
    assert cli("train", "r.yaml", "model.head=new", "adapter.targets=[all-linear]", "--out", "run").code == 0
    assert cli("merge", "run", "--out", "merged").code == 0
    assert cli("export", "run", "--to", "peft-lora", "--out", "peft", "--json").code == 0
    merged = AutoModelForSequenceClassification.from_pretrained("merged")
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)
    seen = torch.tensor([list(b"bbbb"), list(b"acba")])
    exported = PeftModel.from_pretrained(base, "peft").eval()
    torch.testing.assert_close(exported(input_ids=seen).logits, merged(seen).logits, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_layers_that_peft_refuses_are_not_exported(cli: Cli, tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=1, state_size=8, eos_token_id=256,
                         pad_token_id=257)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained("base")
    for file in (ASSETS / "sums_llama").glob("tokenizer*"):
        shutil.copy(file, "base")
    Path("sums.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 4)
    Path("r.yaml").write_text(RECIPE.replace("[q, v, mlp]", "[all-linear]"))
    assert cli("train", "r.yaml", "language.pack=false", "--out", "run").code == 0
    refused = cli("export", "run", "--to", "peft-lora", "--out", "peft")
    assert (refused.code, "out_proj: PEFT has no LoRAs of this layer" in refused.err) == (2, True)


@pytest.mark.slow
def test_the_harness_finds_what_eval_finds(cli: Cli, tmp_path: Path) -> None:
    language_models.saved("Llama", tmp_path / "base")
    rows = ({"prompt": f"{a}+1=", "choices": [str(a), str(a + 1), f"{a}0"], "answer": 1} for a in range(12))
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.yaml").write_text(RECIPE)
    done = cli("train", "r.yaml", "language={length: 16, judge: choices}", "--out", "run", "--json").json()
    Path("tiny.yaml").write_text(HARNESS % Path("sums.jsonl").resolve())
    found = cli("eval", "run", "--lm-eval", "tiny.yaml", "--json")
    assert found.code == 0, found.err
    assert found.json()["metrics"] == {"tiny/acc": pytest.approx(done["metrics"]["accuracy"])}
