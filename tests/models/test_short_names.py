"""Short names of targets on models of transformers: all of an MLP, nothing of a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import superlora_cli
from superlora_cli.adapter import attach as adapters
from superlora_cli.adapter import store
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.commands.train import dry_run
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.checkpoints import targets_in
from superlora_cli.models.conv1d import as_linear
from superlora_cli.models.targets import expand, expand_stored
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import recipe_from_dict

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
BOTH = {"vocab_size": 60, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": SMALL,
    "RobertaForSequenceClassification": SMALL,
    "ElectraForSequenceClassification": SMALL | {"embedding_size": 32},
    "AlbertForSequenceClassification": SMALL | {"embedding_size": 16},
    "DebertaV2ForSequenceClassification": SMALL,
    "DistilBertForSequenceClassification": {"vocab_size": 50, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4},
    "T5ForConditionalGeneration": {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
                                   "num_heads": 4, "feed_forward_proj": "gated-gelu"},
    "OPTForCausalLM": {"vocab_size": 50, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1,
                       "num_attention_heads": 4, "word_embed_proj_dim": 32},
    "WhisperForConditionalGeneration": BOTH | SPECIAL | {"num_mel_bins": 8},
    "BartForSequenceClassification": BOTH,
    "GPT2LMHeadModel": {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1,
                        "eos_token_id": 2},
}  # fmt: skip


def made(name: str) -> Any:
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(**CONFIGS[name]))


def ends(model: nn.Module, *patterns: str) -> set[str]:
    """The last two words of the targets' names."""
    return {".".join(target.name.split(".")[-2:]) for target in expand(model, patterns)}


@pytest.mark.parametrize(
    ("name", "mlp"),
    [
        *((f"{name}ForSequenceClassification", {"intermediate.dense", "output.dense"})
          for name in ("Bert", "Roberta", "Electra", "DebertaV2")),
        ("AlbertForSequenceClassification", {"0.ffn", "0.ffn_output"}),
        ("DistilBertForSequenceClassification", {"ffn.lin1", "ffn.lin2"}),
        ("T5ForConditionalGeneration", {"DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"}),
        ("OPTForCausalLM", {"0.fc1", "0.fc2"}),
        ("WhisperForConditionalGeneration", {"0.fc1", "0.fc2"}),
    ],
)  # fmt: skip
def test_short_names_share_out_the_layers_of_a_block(name: str, mlp: set[str]) -> None:
    model = made(name)
    assert ends(model, "mlp") == mlp
    layers = {word: {target.module for target in expand(model, [word])} for word in ("q", "k", "v", "o", "mlp")}
    assert len(set.union(*layers.values())) == sum(map(len, layers.values()))  # no layer is two
    in_blocks = {target.module for target in expand(model, ["re:.*[._](layers?|block|albert_layers)[.].*"])}
    assert set.union(*layers.values()) == {module for module in in_blocks if "mapping" not in module}  # ALBERT's input


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("RobertaForSequenceClassification", {"classifier.dense", "classifier.out_proj"}),
        ("BartForSequenceClassification", {"classification_head.dense", "classification_head.out_proj"}),
        ("WhisperForConditionalGeneration", {"proj_out"}),
        ("OPTForCausalLM", {"lm_head"}),
    ],
)
def test_all_linear_leaves_out_the_head(name: str, head: set[str]) -> None:
    model = made(name)
    linear = {module for module, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert head <= linear
    assert {target.module for target in expand(model, ["all-linear"])} == linear - head


def test_short_names_leave_out_what_is_trained_as_a_head(tmp_path: Path) -> None:
    model, head = made("DistilBertForSequenceClassification"), ["pre_classifier", "classifier"]
    adapter = superlora_cli.attach(model, "all-linear", "lora", rank=2, head=head)
    assert not {target.module for target in adapter.targets} & {*head}
    superlora_cli.save(model, tmp_path / "a.safetensors")
    again = superlora_cli.load(made("DistilBertForSequenceClassification"), tmp_path / "a.safetensors")
    assert again.targets == adapter.targets
    with pytest.raises(UsageError, match="pre_classifier"):
        superlora_cli.attach(made("DistilBertForSequenceClassification"), ["pre*"], "lora", head=head)


@pytest.mark.parametrize("word", ["mlp", "all-linear"])
def test_a_file_of_an_earlier_version_keeps_its_targets(word: str, tmp_path: Path) -> None:
    model, file = made("RobertaForSequenceClassification"), tmp_path / "a.safetensors"
    targets = expand(model, [word], earlier=True)
    assert targets != expand(model, [word])
    adapter = adapters.attach(model, targets, AdapterConfig.from_knobs("lora", rank=2))
    adapter.patterns = (word,)
    superlora_cli.save(model, file)
    fresh = made("RobertaForSequenceClassification")
    assert list(superlora_cli.load(fresh, file).targets) == targets
    superlora_cli.save(fresh, file)  # and once more
    stored = store.load(file)
    plain = made("RobertaForSequenceClassification")
    assert expand_stored(plain, stored) == targets
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    assert targets_in(shapes, stored, "the checkpoint") == targets
    with pytest.raises(MismatchError, match="targets do not match"):
        superlora_cli.load(made("ElectraForSequenceClassification"), file)


@pytest.mark.parametrize("targets", ["all-linear", ["q", "v"], "mlp"])
def test_layers_that_are_no_linear_ones_are_named(targets: Any) -> None:
    model = made("GPT2LMHeadModel")
    with pytest.raises(UsageError, match=r"matches no weight.*Conv1D.*as_linear") as raised:
        superlora_cli.attach(model, targets, "lora", rank=2)
    assert "did you mean" not in str(raised.value)
    model.requires_grad_(False)
    as_linear(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert superlora_cli.attach(model, targets, "lora", rank=2).plan.params


@pytest.mark.parametrize("word", ["q", "mlp", "all-linear"])
def test_a_hint_is_not_the_word_itself(word: str) -> None:
    with pytest.raises(UsageError) as raised:
        expand(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), [word])
    assert word not in (raised.value.hint or "").replace(",", " ").split()


@pytest.mark.parametrize("targets", [["all-linear"], ["q", "v"]])
def test_experts_that_stay_frozen_are_told(targets: list[str], tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4)
    config.save_pretrained(tmp_path)
    wanted = {"task": "language", "model": {"name": f"transformers:{tmp_path}", "pretrained": False},
              "data": {"name": "sums"}, "adapter": {"method": "lora", "rank": 2, "targets": targets},
              "language": {"length": 16},
              "train": {"steps": 1, "optimizer": {"name": "AdamW", "lr": 0.01}}}  # fmt: skip
    recipe = recipe_from_dict(wanted, "a test")
    built = build_for_training(recipe, weights=False)
    experts = 4 * 3 * 32 * 48
    told = f"{experts:,} parameters of experts are not in linear layers and stay frozen"
    assert dry_run(recipe).get("note") == built.base.note == (told if targets == ["all-linear"] else None)
    assert not any(parameter.requires_grad for name, parameter in built.model.named_parameters() if "experts" in name)
