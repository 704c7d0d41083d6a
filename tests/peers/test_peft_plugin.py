"""SuperLoRA through PEFT's own functions."""

from __future__ import annotations

import copy
import doctest
import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

import superlora_cli
from superlora_cli import peft_plugin
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import UsageError
from superlora_cli.models.targets import expand
from superlora_cli.peft_plugin import SuperLoraConfig
from tests.peers.test_transformers import batch, build
from tests.project.test_readme import python_blocks

KNOBS = {
    "lora": {"method": "lora", "rank": 2},
    "lorta": {"method": "lorta", "rank": 2, "groups": 2},
    "lokr": {"method": "lokr", "rank": 2, "split_dim": 4},
    "linear_v2": {"order": 2, "rank": 2, "projection": "linear_v2", "ratio": 0.5},
    "lora of 4 bits": {"method": "lora", "rank": 2, "bits": 4},
}
VARIANTS = pytest.mark.parametrize("name", KNOBS)
INPUTS = batch("llama")


def config(name: str = "lorta", **more: object) -> SuperLoraConfig:
    return SuperLoraConfig(target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM, **KNOBS[name], **more)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**INPUTS).logits


def train(model: nn.Module, steps: int = 10) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.3, weight_decay=0)
    losses = []
    for _ in range(steps):
        loss = model(**INPUTS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@VARIANTS
def test_trained_saved_loaded_and_merged(name: str, tmp_path: Path) -> None:
    before = logits(build("llama"))
    model = get_peft_model(build("llama"), config(name))
    assert torch.equal(logits(model), before)
    adapter = model.base_model.model.superlora.named["default"]
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == adapter.plan.params
    assert total == trainable + sum(p.numel() for p in build("llama").parameters())
    losses = train(model)
    assert losses[-1] < 0.98 * losses[0]
    adapted = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), adapted)
    assert model.get_nb_trainable_parameters()[0] == trainable

    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).adapter_config() == model.peft_config["default"].adapter_config()
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(loaded), adapted)
    assert loaded.get_nb_trainable_parameters()[0] == 0

    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged), adapted, rtol=0, atol=1e-5)
    assert merged.state_dict().keys() == build("llama").state_dict().keys()
    assert not hasattr(merged, "peft_config")


@pytest.mark.parametrize(
    "knobs",
    [{"method": "unilora", "inner": {"dim": 16}}, {"method": "vera"}, {"method": "lora_xs", "freeze": ["A1", "A2"]}],
)
def test_frozen_tensors_are_recreated(knobs: dict[str, object], tmp_path: Path) -> None:
    before = logits(build("llama"))
    model = get_peft_model(build("llama"), SuperLoraConfig(target_modules=["q_proj", "v_proj"], **knobs))
    train(model, steps=2)
    adapted = logits(model)
    assert not torch.equal(adapted, before)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(loaded), adapted)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), adapted, rtol=0, atol=1e-5)


def test_positions_are_chosen_before_training_and_saved(tmp_path: Path) -> None:
    knobs = {"method": "shira", "projection": "steepest"}
    model = get_peft_model(build("llama"), SuperLoraConfig(target_modules=["q_proj", "v_proj"], **knobs))
    with pytest.raises(UsageError, match="its positions come from the first gradients"):
        train(model, steps=1)

    def passes() -> None:
        model(**INPUTS).loss.backward()

    superlora_cli.inform(model, passes)
    with pytest.raises(UsageError, match="has been informed, or loaded"):
        superlora_cli.inform(model, passes)
    train(model, steps=2)
    adapted = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(loaded), adapted)


def test_unload_gives_the_base_back() -> None:
    model = get_peft_model(build("llama"), config())
    train(model)
    base = model.unload()
    assert torch.equal(logits(base), logits(build("llama")))
    assert type(base.model.layers[0].self_attn.q_proj) is nn.Linear


def test_adapters_by_name(tmp_path: Path) -> None:
    model = get_peft_model(build("llama"), config("lorta"), adapter_name="pets")
    train(model)
    pets = logits(model)
    model.add_adapter("cars", config("lora"))
    assert torch.equal(logits(model), pets)
    model.set_adapter("cars")
    assert torch.equal(logits(model), logits(build("llama")))
    train(model)
    cars = logits(model)
    assert not torch.allclose(cars, pets, atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path / "pets", adapter_name="pets", is_trainable=True)
    loaded.load_adapter(tmp_path / "cars", adapter_name="cars")
    assert torch.equal(logits(loaded), pets)
    loaded.set_adapter("cars")
    assert torch.equal(logits(loaded), cars)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), logits(build("llama")))
    assert torch.equal(logits(loaded), cars)
    assert loaded.get_model_status().active_adapters == ["cars"]
    with pytest.warns(UserWarning, match="Setting active adapter to pets"):
        loaded.delete_adapter("cars")
    assert torch.equal(logits(loaded), pets)
    assert list(loaded.peft_config) == ["pets"]


def test_a_head_is_saved_with_the_adapter(tmp_path: Path) -> None:
    config = SuperLoraConfig(target_modules=["q", "v"], method="lorta", rank=2, modules_to_save=["classifier"])
    model, inputs = get_peft_model(build("vit"), config), batch("vit")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    with torch.no_grad():
        adapted = model(**inputs).logits
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(build("vit"), tmp_path)
        assert torch.equal(loaded(**inputs).logits, adapted)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, adapted, rtol=0, atol=1e-5)
    assert merged.state_dict().keys() == build("vit").state_dict().keys()


def test_rows_of_a_fused_weight_are_targets() -> None:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    base = timm.create_model("vit_tiny_patch16_224", num_classes=5, **size)
    keys = base.blocks[0].attn.qkv.weight[32:64].clone()
    config = SuperLoraConfig(target_modules=["*.qkv[q]", "*.qkv[v]"], method="lorta", rank=2)
    model = get_peft_model(base, config)
    images = torch.randn(2, 3, 16, 16)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(images).square().sum().backward()
        optimizer.step()
    adapted = model(images)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(images), adapted, rtol=0, atol=1e-5)
    assert torch.equal(merged.blocks[0].attn.qkv.weight[32:64], keys)


def test_a_half_precision_base_keeps_float32_factors() -> None:
    model = get_peft_model(build("llama").bfloat16(), config("lora"))
    losses = train(model)
    assert losses[-1] < losses[0]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*\.(q|v)_proj", ["q", "v"], ["*.q_proj", "*.v_proj"]])
def test_targets_are_written_as_in_peft_or_as_in_recipes(targets: list[str] | str) -> None:
    model = get_peft_model(build("llama"), SuperLoraConfig(target_modules=targets, method="lora", rank=2))
    wanted = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"]
    assert model.base_model.targeted_module_names == wanted


def t5() -> nn.Module:
    small = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=40, num_layers=1, decoder_start_token_id=0, **small)).eval()


def classifier() -> nn.Module:
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForSequenceClassification(
        LlamaConfig(vocab_size=40, num_attention_heads=2, num_labels=3, **small)
    ).eval()


@pytest.mark.parametrize(
    ("model", "targets", "task"),
    [
        (t5, ["q", "v", "o"], None),
        (t5, ["SelfAttention.o", "wi"], TaskType.SEQ_2_SEQ_LM),
        (t5, "all-linear", TaskType.SEQ_2_SEQ_LM),
        (classifier, "all-linear", TaskType.SEQ_CLS),
        (classifier, "all-linear", None),
        (classifier, ["q_proj", "score"], None),
    ],
)
def test_target_names_select_the_same_modules_as_in_peft(
    model: Callable[[], nn.Module], targets: list[str] | str, task: TaskType | None
) -> None:
    peft = get_peft_model(model(), LoraConfig(target_modules=targets, task_type=task))
    ours = get_peft_model(model(), SuperLoraConfig(target_modules=targets, task_type=task, method="lora", rank=1))
    assert ours.base_model.targeted_module_names == sorted(peft.base_model.targeted_module_names)


def test_short_names_know_the_attention_of_t5() -> None:
    found = [target.module for target in expand(t5(), ["q", "v", "o"])]
    assert len(found) == 9
    assert not any("DenseReluDense" in name for name in found)
    assert "score" not in [target.module for target in expand(classifier(), ["all-linear"])]


def test_the_config_has_every_knob() -> None:
    own = {field.name for field in fields(SuperLoraConfig)} - {field.name for field in fields(PeftConfig)}
    assert own == {*AdapterConfig.knobs()} | {"method", "target_modules", "modules_to_save"}


def test_copies_and_pickles_are_independent_models() -> None:
    model = get_peft_model(build("llama"), config())
    train(model, steps=2)
    adapted, stream = logits(model), io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    for other in (copy.deepcopy(model), torch.load(stream, weights_only=False)):
        assert torch.equal(logits(other), adapted)
        train(other, steps=2)
        assert not torch.equal(logits(other), adapted)
        with other.disable_adapter():
            assert torch.equal(logits(other), logits(build("llama")))
        assert torch.equal(logits(model), adapted)


def test_the_examples_in_the_plugin_hold() -> None:
    found = doctest.testmod(peft_plugin)
    assert (found.attempted, found.failed) == (1, 0)


@pytest.mark.parametrize("code", python_blocks(with_peers=True))
def test_the_python_of_the_docs_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})


def test_a_nonlinear_update_is_saved_and_loaded_but_not_merged(tmp_path: Path) -> None:
    model = get_peft_model(build("llama"), SuperLoraConfig(target_modules=["q"], method="loda", activation="relu"))
    losses = train(model)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), tmp_path)
    torch.testing.assert_close(logits(again), logits(model))
    with pytest.raises(UsageError, match="σ = relu has no ΔW, so it cannot be merged"):
        again.merge_and_unload()


def test_the_limits_of_the_plugin_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank 2 with order 1"):
        SuperLoraConfig(target_modules=["q"], order=1, rank=2)
    for method, also in (("none", None), ("bitfit", None), ("lora", ["norm"])):
        with pytest.raises(UsageError, match="PEFT only saves factors and whole modules"):
            SuperLoraConfig(target_modules=["q"], method=method, also=also)
    with pytest.raises(UsageError, match="matches no weight"):
        get_peft_model(build("llama"), SuperLoraConfig(target_modules=["nowhere"]))
    with pytest.raises(UsageError, match="no target"):
        get_peft_model(build("llama"), SuperLoraConfig())
    model = get_peft_model(build("llama"), config())
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="low_cpu_mem_usage: not supported by superlora"):
        PeftModel.from_pretrained(build("llama"), tmp_path, low_cpu_mem_usage=True)
    model.add_adapter("other", config("lora"))
    with pytest.raises(UsageError, match="2 adapters at once"):
        model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UsageError, match="2 adapters to merge"):
        model.merge_and_unload(adapter_names=["default", "other"])
    with pytest.raises(UsageError, match="cannot merge in place"):
        model.merge_adapter()
    with pytest.raises(ValueError, match=r"one PEFT type|same type|(?i:combine)"):
        model.add_adapter("lora", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"(?i)shared"):
        inject_adapter_in_model(config(), build("llama"))


def test_the_scale_is_the_weights_and_saved_as_a_plain_alpha(tmp_path: Path) -> None:
    model = get_peft_model(build("llama"), SuperLoraConfig(target_modules=["q"], rank=2))
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["scaling"] == "alpha"
    assert 0 < saved["alpha"] < 0.1
    before = {**saved, "scaling": None, "alpha": None}  # as an earlier version saved it
    assert SuperLoraConfig.from_peft_type(**before).adapter_config().scale == 1
