"""Quantised language models from end to end: train, resume, evaluate, generate, merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from superlora_cli.adapter.packed import is_packed
from superlora_cli.models.language import build_language
from superlora_cli.models.quantising import SCHEMES
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.training.run import RunFolder
from tests import language_models
from tests.conftest import Cli
from tests.quantised.nearness import nearly
from tests.quantised.sizes import sizes

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(5)]
EACH = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; read only."""
    return language_models.saved("Llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def prepared(llama: Path, cli: Cli, tmp_path: Path) -> Cli:
    """Runs commands in a folder with `r.yaml`, `sums.jsonl` and `kinds.jsonl`."""
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rows = [{"text": row["prompt"], "label": ("odd", "even")[number % 2]} for number, row in enumerate(ROWS)]
    (tmp_path / "kinds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        f"task: language\nmodel: {{name: 'transformers:{llama}'}}\n"
        "data: {name: sums.jsonl}\nlanguage: {length: 16}\n"
        "adapter: {method: lora, rank: 2, targets: [q, v, mlp]}\n"
        "train: {steps: 4, batch_size: 2, checkpoint_every: 2, threads: 1, log_every: 1, optimizer: {lr: 0.2}}\n"
    )
    return cli


@pytest.mark.slow
@EACH
def test_a_run_from_training_to_a_merged_model(scheme: str, prepared: Cli) -> None:
    change = (f"model.quantize={scheme}",)
    done = prepared("train", "r.yaml", *change, "--out", "run", "--json")
    assert done.code == 0, done.err
    shutil.copytree("run", "half")
    shutil.rmtree(RunFolder(Path("half")).latest_checkpoint() or "")
    Path("half", "adapter.safetensors").unlink()
    assert prepared("train", "r.yaml", *change, "--resume", "half", "--json").code == 0
    assert nearly(*(load_file(f"{name}/adapter.safetensors") for name in ("run", "half")))

    judged = prepared("eval", "run", "--json").json()
    assert judged["metrics"]["loss"] == pytest.approx(done.json()["metrics"]["loss"], abs=1e-4)
    text = prepared("generate", "run", "--prompt", "3+4=", "--max-tokens", "4", "--json").json()["completions"][0][
        "text"
    ]

    refused = prepared("merge", "run", "--out", "merged")
    assert refused.code == 2
    assert f"its base is quantised ({scheme}): ΔW cannot be added to it" in refused.message
    assert "--dequantise" in refused.message
    merged = prepared("merge", "run", "--out", "merged", "--dequantise", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["dequantised"] == f"from {scheme} to float32"
    assert merged.json()["max_abs_error"] < (0.1 if SCHEMES[scheme].rounds_inputs else 1e-4)
    model = AutoModelForCausalLM.from_pretrained("merged")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(is_packed(layer) for layer in model.modules())
    tokenizer = AutoTokenizer.from_pretrained("merged")
    ids = tokenizer("3+4=", return_tensors="pt", add_special_tokens=False).input_ids
    made = model.generate(ids, do_sample=False, max_new_tokens=4)[0, ids.shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == text


@EACH
def test_a_dry_run_has_the_layers_the_count_and_the_bytes_of_the_real_base(
    scheme: str, prepared: Cli, llama: Path
) -> None:
    section = ModelSection(name=f"transformers:{llama}", quantize=scheme, head="frozen")
    real, shapes = (sizes(build_language(section, classes=None, weights=weights).model) for weights in (True, False))
    assert real == shapes
    assert len(real) == 14  # the output layer is not quantised
    plain, small = (
        prepared("train", "r.yaml", *more, "--dry-run", "--json").json() for more in ((), (f"model.quantize={scheme}",))
    )
    assert plain["params"] == small["params"]
    elements = sum(parameter.numel() for parameter in linear_weights(llama))
    assert plain["memory"]["base"] - small["memory"]["base"] == 4 * elements - sum(real.values())


def linear_weights(folder: Path) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return [layer.weight for name, layer in model.named_modules() if name.endswith("proj")]


def test_an_adapter_belongs_to_its_base_and_its_bits(prepared: Cli) -> None:
    assert prepared("train", "r.yaml", "model.quantize=torchao-8bit", "--out", "run", "--json").code == 0
    assert prepared("inspect", "run").code == 0
    for change, stored in (("model.quantize=null", "float32"), ("model.quantize=bitsandbytes-8bit", "Int8Params")):
        other = prepared("eval", "run", change)
        assert other.code == 3
        assert f"the base is stored as {stored}, but the adapter was trained on Int8Tensor" in other.message
    assert prepared("eval", "run", "model.quantize=null", "--allow-base-mismatch", "--json").code == 0


def test_a_classifier_keeps_its_head_in_full(prepared: Cli) -> None:
    words = ("data.name=kinds.jsonl", "model.head=new", "model.quantize=bitsandbytes-4bit")
    assert prepared("train", "r.yaml", *words, "--out", "run", "--json").code == 0
    merged = prepared("merge", "run", "--out", "merged", "--dequantise", "--dtype", "bfloat16", "--json")
    assert merged.code == 0, merged.err
    assert merged.json()["dequantised"] == "from bitsandbytes-4bit to bfloat16"
    model = AutoModelForSequenceClassification.from_pretrained("merged")
    assert model.config.id2label == {0: "even", 1: "odd"}
    head = load_file("run/adapter.safetensors")["head.score.weight"]
    assert torch.equal(model.score.weight, head.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@EACH
def test_a_base_in_bfloat16_learns_in_either_precision(scheme: str, precision: str, prepared: Cli) -> None:
    words = (f"model.quantize={scheme}", "model.kwargs={dtype: bfloat16}", f"train.precision={precision}",
             "train.gradient_checkpointing=true")  # fmt: skip
    done = prepared("train", "r.yaml", *words, "--out", "run", "--json")
    assert done.code == 0, done.err
    assert prepared("merge", "run", "--out", "m", "--dequantise", "--json").json()["dequantised"].endswith("bfloat16")
