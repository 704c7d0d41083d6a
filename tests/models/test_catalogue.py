"""The catalogue says what the libraries build: names, order, shapes, parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch

from superlora_cli.adapter.targets import TargetShape
from superlora_cli.errors import UsageError
from superlora_cli.models import catalogue
from superlora_cli.models.build import build as build_base
from superlora_cli.models.descriptions import DENOISERS, cfg_unet, llama_7b
from superlora_cli.models.embedded import EMBEDDED, LANGUAGE, PIPELINES
from superlora_cli.models.language_shapes import SHAPES
from superlora_cli.models.parts import parts_of
from superlora_cli.models.rolled import roll, unroll
from superlora_cli.models.targets import expand
from superlora_cli.recipe.schema import ModelSection

PATTERNS = (
    *(["q"], ["k"], ["v"], ["q", "v"], ["o"], ["mlp"], ["all-linear"], ["*"]),
    *(["*.qkv[q]", "*.qkv[v]"], ["*.attn.qkv[0:7]"], [r"re:.*\.(fc1|fc2)"], ["*.mlp.fc1", "*.attn.proj"]),
)
OFTEN = ("vit_base_patch16_224", "swinv2_tiny_window8_256", "eva02_base_patch14_224", "beit_base_patch16_224")


def build(name: str, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def found(expansion: Callable[[list[str]], list[TargetShape]], patterns: list[str]) -> list[TargetShape] | str:
    """What an expansion gives, or the message with which it refuses."""
    try:
        return expansion(patterns)
    except UsageError as error:
        return str(error)


def same_targets(name: str, model: Any) -> None:
    for patterns in PATTERNS:
        expected = found(lambda wanted: [target.flat for target in expand(model, wanted)], patterns)
        assert found(partial(catalogue.targets, name), patterns) == expected, patterns


def same_parameters(name: str, model: Any) -> None:
    base = catalogue.find(name)
    head = base.new_head(1)
    assert base.parts == {name: part for name, part in parts_of(model).items() if name not in head}
    assert base.params == sum(parameter.numel() for parameter in model.parameters())
    if not hasattr(model, "reset_classifier"):
        assert not base.new_head(37)
        return
    with torch.device("meta"):
        model.reset_classifier(37)
    new = {key: tuple(model.get_parameter(key).shape) for key in base.new_head(37)}
    assert base.new_head(37) == new
    assert all(shape[0] == 37 for shape in new.values())


@pytest.mark.parametrize("name", OFTEN)
def test_an_entry_is_what_timm_builds(name: str) -> None:
    model = build(name)
    same_targets(name, model)
    same_parameters(name, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.ARCHITECTURES)
def test_every_entry_is_what_timm_builds_for_every_tag(name: str) -> None:
    for tag in (*timm.models.get_arch_pretrained_cfgs(name), name):
        model = build(tag)
        same_targets(tag, model)
        same_parameters(tag, model)


@pytest.mark.parametrize("name", [*EMBEDDED, *PIPELINES])
def test_a_shipped_base_is_what_its_recipe_builds(name: str) -> None:
    model = build_base(ModelSection(name=name, head="frozen"), classes=None, weights=False).model
    same_targets(name, model)
    same_parameters(name, model)


def test_a_tag_may_have_a_different_head() -> None:
    assert catalogue.find("vit_base_patch16_224").params == 86_567_656
    assert catalogue.find("vit_base_patch16_224.orig_in21k").params == 85_798_656  # none
    assert catalogue.find("vit_base_patch16_224.augreg_in21k").params == 85_798_656 + 21_843 * 769


def test_the_diffusion_base_is_the_published_one() -> None:
    assert sum(layer.params for layer in cfg_unet()) == catalogue.find("cfg_unet").params == 10_409_357
    model = build_base(ModelSection(name="cfg_unet", pretrained=False), classes=None, weights=False).model
    assert catalogue.find("cfg_unet").parts == parts_of(model)
    adapted = catalogue.targets("cfg_unet", ["q", "v"])
    assert [target.rows for target in adapted].count(64) == 10
    assert [target.rows for target in adapted].count(128) == 32
    assert all(target.rows == target.columns for target in adapted)
    assert sum(target.elements for target in adapted) == 565_248
    assert adapted[0].name == "down.0.0.attn.q"
    assert len({target.layer for target in adapted}) == 21


OTHERS = ("cfg_unet", "llama_7b", *DENOISERS, *LANGUAGE, *SHAPES)
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "mistral-7b-v0.3": 7_248_023_552,
    "phi-2": 2_779_683_840,
    "phi-3.5-mini": 3_821_079_552,
    "phi-4-mini": 3_836_021_760,
    "phi-4": 14_659_507_200,
}


@pytest.mark.parametrize("name", [*LANGUAGE, *SHAPES])
def test_a_language_model_is_what_transformers_builds(name: str) -> None:
    model = catalogue.language_model(name)
    same_targets(name, model)
    same_parameters(name, model)
    assert catalogue.find(name).params == PUBLISHED.get(name, 1_271_936)
    assert all(len(catalogue.targets(name, [part])) == model.config.num_hidden_layers for part in "qkvo")


def test_grouped_queries_of_a_fused_weight_are_found() -> None:
    assert [target.rows for target in catalogue.targets("phi-4", ["q", "k", "v"])[:3]] == [5120, 1280, 1280]


def test_the_language_model_has_llama_s_parameters() -> None:
    assert sum(layer.params for layer in llama_7b()) == catalogue.find("llama_7b").params == 6_738_415_616
    assert len(catalogue.targets("llama_7b", ["q", "v"])) == 64
    assert len(catalogue.find("llama_7b").also(["norm"])) == 65
    assert "lm_head" not in {target.name for target in catalogue.targets("llama_7b", ["all-linear"])}


@pytest.mark.parametrize(
    ("name", "params", "queries"),
    [
        ("sd-1.5", 859_520_964, 32),
        ("sdxl", 2_567_463_684, 140),
        ("sd3.5-medium", 2_243_171_520, 24 + 13 + 24),
        ("flux.1-dev", 11_901_408_320, 19 + 38 + 19),
        ("flux.2-klein", 3_875_544_576, 5 + 5 + 20),
        ("z-image", 6_154_908_736, 30 + 2 + 2),
        ("qwen-image", 20_430_401_088, 60 + 60),
        ("sana-1.6b", 1_604_462_752, 20 + 20),
        ("pixart-sigma", 610_856_096, 28 + 28),
    ],
)
def test_a_denoiser_is_what_diffusers_builds(name: str, params: int, queries: int) -> None:
    model = catalogue.denoiser(name)
    same_targets(name, model)
    same_parameters(name, model)
    assert catalogue.find(name).params == params
    assert len(catalogue.targets(name, ["q"])) == queries


def test_the_data_file_is_compact_and_has_every_architecture() -> None:
    assert catalogue.names() == [*catalogue.ARCHITECTURES, *EMBEDDED, *PIPELINES, *OTHERS]
    assert catalogue.DATA.stat().st_size < 200_000
    for line in catalogue.DATA.read_text().splitlines():
        entry = json.loads(line)
        shapes = list(unroll(entry["weights"]))
        assert roll(shapes) == entry["weights"]


def test_a_name_outside_is_built_with_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    base = catalogue.find("resnet18")
    assert (base.params, dict(base.classifiers)) == (11_689_512, {"fc": 512})
    assert "not in the catalogue: building resnet18 with timm" in capsys.readouterr().err
    assert catalogue.find("vit_base_patch16_224", {"img_size": 384}).params > 86_567_656
    assert "building vit_base_patch16_224 img_size with timm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_bse_patch16_224", "vit_base_patch16_224"),
        ("vit_base_patch16_224.nonsense", "nonsense"),
        ("resnt18", "resnet"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        catalogue.find(name)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("maxvit_nano_rw_256", "q"),
        ("coatnet_nano_rw_224", "v"),
        ("tiny_vit_5m_224", "q"),
        ("efficientformer_l1", "v"),
        ("gcvit_xxtiny", "q"),  # its global blocks hold k and v alone in `qkv`
        ("levit_128", "k"),
    ],
)
def test_rows_that_are_not_contiguous_are_refused(name: str, word: str) -> None:
    model = build(name)
    with pytest.raises(UsageError, match="not contiguous") as caught:
        expand(model, [word])
    whole = str(caught.value.hint).split("'")[1]
    assert whole.endswith(("qkv", "qkv.linear"))
    assert all(target.whole for target in expand(model, [whole]))


def test_a_model_without_attention_says_what_to_try_instead() -> None:
    with pytest.raises(UsageError, match="'q' matches no weight") as caught:
        expand(build("resnet18"), ["q"])
    assert caught.value.hint == "try *conv*"


def test_the_same_layer_with_blocks_of_rows_is_fine() -> None:
    assert expand(build("maxvit_tiny_tf_224"), ["q"])  # converted weights: q, k, v first, then heads


def test_levit_s_slices_are_refused_by_the_layer_further_up() -> None:
    with pytest.raises(UsageError, match="Attention does not keep"):
        expand(build("levit_128"), ["*.qkv.linear[q]"])


def test_a_projection_named_proj_inside_query_is_q_and_not_o() -> None:
    model = build("mobilenetv4_hybrid_medium")
    assert all(".query." in target.module for target in expand(model, ["q"]))
    assert all(".output." in target.module for target in expand(model, ["o"]))


@pytest.mark.parametrize(
    ("name", "end"), [("gemma4_vit_167m", "attn.q_proj.linear"), ("efficientformerv2_s0", "token_mixer.q.conv")]
)
def test_projections_are_known_inside_of_a_layer_around_them(name: str, end: str) -> None:
    model = build(name)
    q, k, v = (expand(model, [word]) for word in "qkv")
    assert len(q) == len(k) == len(v)
    assert any(target.module.endswith(end) for target in q)


def test_fused_query_and_key_are_distinguished() -> None:
    convit = build("convit_tiny")
    (q, *_), (k, *_) = expand(convit, ["q"]), expand(convit, ["k"])
    assert (q.module, q.start, k.start) == ("blocks.0.attn.qk", 0, q.stop)
    assert len(expand(convit, ["q"])) == len(expand(convit, ["v"])) == 12


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys; from superlora_cli.models.catalogue import targets; targets('cfg_unet', ['q']); " + (
        "print({'torch', 'timm', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
