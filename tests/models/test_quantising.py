"""Quantised bases, as far as no library is needed; the rest is in tests/quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from superlora_cli.models.quantising import SCHEMES
from superlora_cli.recipe.schema import ModelSection
from tests import language_models
from tests.conftest import Cli


@pytest.fixture
def prepared(cli: Cli, tmp_path: Path) -> Cli:
    """Runs commands in a folder with `r.yaml`, whose base is quantised."""
    language_models.saved("Llama", tmp_path / "llama")
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(5)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        "task: language\nmodel: {name: 'transformers:llama', quantize: bitsandbytes-4bit}\n"
        "data: {name: sums.jsonl}\nlanguage: {length: 16}\nadapter: {method: lora, rank: 2}\n"
        "train: {steps: 1, batch_size: 2, threads: 1}\n"
    )
    return cli


def test_the_schema_names_every_scheme() -> None:
    (names, _) = get_args(ModelSection.model_fields["quantize"].annotation)
    assert get_args(names) == tuple(SCHEMES)


def test_what_cannot_be_quantised_is_one_line(prepared: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlora_cli.models.quantising.find_spec", lambda name: None)
    refused = {
        (): "model.quantize=bitsandbytes-4bit: needs the library bitsandbytes (pip install 'superlora-cli[quantize]')",
        ("model.pretrained=false",): "the model's own weights can be quantised (leave out model.pretrained: false)",
        ("model.checkpoint=x.safetensors",): "can be quantised (leave out model.checkpoint)",
        ("adapter=null",): "quantised weights cannot be trained",
        ("train.shard_base=true",): "train.shard_base=true: cannot be combined with model.quantize",
        ("adapter.method=dora",): "is quantised: ΔW would be a product with all its numbers (multiply: magnitude)",
        ("adapter.init=gradient",): "is quantised: it gets no gradient (init: gradient)",
        ("task=classification", "model.name=vit_tiny_patch16_224", "data.name=digits", "language=null"):
            "model.quantize: applies to language models and text-to-image pipelines",
    }  # fmt: skip
    for words, says in refused.items():
        dry = ("--dry-run",) if words else ()
        result = prepared("train", "r.yaml", *words, *dry, "--out", "run")
        assert result.code == 2, words
        assert says in result.message, words
        assert not Path("run").exists()


def test_a_dry_run_needs_no_library_and_less_memory(prepared: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlora_cli.models.quantising.find_spec", lambda name: None)
    plain, eight, four = (
        prepared("train", "r.yaml", f"model.quantize={name}", "--dry-run", "--json").json()
        for name in ("null", "bitsandbytes-8bit", "bitsandbytes-4bit")
    )
    assert plain["params"] == eight["params"] == four["params"]
    assert plain["targets"] == eight["targets"] == four["targets"]
    assert plain["memory"]["base"] > max(eight["memory"]["base"], four["memory"]["base"])  # small: 4 bits need tables
    assert plain["memory"]["activations"] == eight["memory"]["activations"]


def test_dequantising_is_for_quantised_bases(adapter: Path, cli: Cli) -> None:
    refused = cli("merge", adapter, "--out", "out.safetensors", "--dequantise")
    assert refused.code == 2
    assert "--dequantise: the adapter's base is not quantised" in refused.message
