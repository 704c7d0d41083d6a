"""Recipes at full size: a dry run on shapes alone, its count that of the closed form and of the recipe's comment."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.adapter.attach import attach, detach
from superlora_cli.adapter.layout import plan
from superlora_cli.commands.train import dry_run
from superlora_cli.models import catalogue
from superlora_cli.models.embedded import ASSETS
from superlora_cli.models.families import FAMILIES
from superlora_cli.models.targets import expand
from superlora_cli.recipe.load import load_recipe, shipped_recipes
from superlora_cli.recipe.schema import AdapterSection
from superlora_cli.sweeping.plan import load_plan

BASES = {  # of the recipes `dreambooth_…`: name in the catalogue → the pipeline, its autoencoder, its scheduler
    "sdxl": ("StableDiffusionXLPipeline", "AutoencoderKL", "EulerDiscreteScheduler"),
    "sd3.5-medium": ("StableDiffusion3Pipeline", "AutoencoderKL", "FlowMatchEulerDiscreteScheduler"),
    "flux.1-dev": ("FluxPipeline", "AutoencoderKL", "FlowMatchEulerDiscreteScheduler"),
    "flux.2-klein": ("Flux2KleinPipeline", "AutoencoderKLFlux2", "FlowMatchEulerDiscreteScheduler"),
    "z-image": ("ZImagePipeline", "AutoencoderKL", "FlowMatchEulerDiscreteScheduler"),
    "qwen-image": ("QwenImagePipeline", "AutoencoderKLQwenImage", "FlowMatchEulerDiscreteScheduler"),
}
NAMES = {f"dreambooth_{re.sub('[-.]', '_', base)}": base for base in BASES}  # recipe → its base
NAMES |= {"style_sdxl": "sdxl", "style_flux_2_klein": "flux.2-klein"}
AUTOENCODER = {"block_out_channels": [128, 256, 512, 512], "temperal_downsample": [False, True, True]}
LLAMA, METAMATH = "llama-3.2-3b", "metamath_llama"
SUITES = [name for name in shipped_recipes() if name.startswith(("vtab_", "fgvc_"))]


def configured(base: str, folder: Path) -> Path:
    """A pipeline of configurations, without weights."""
    kind, autoencoder, scheduler = BASES[base]
    family = FAMILIES[kind]
    denoiser, arguments = catalogue.DENOISERS[base]
    index = {"_class_name": kind, **{part: ["transformers", "Any"] for part in family.parts}}
    index |= {family.denoiser: ["diffusers", denoiser], "vae": ["diffusers", autoencoder]}
    index |= {"scheduler": ["diffusers", scheduler]}
    configs: dict[str, dict[str, Any]] = {part: {} for part in family.parts}
    configs |= {family.denoiser: arguments, "vae": AUTOENCODER}
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps({"_class_name": index[part][1], **config}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def told(name: str) -> list[int]:
    """The numbers of parameters in a recipe's comment."""
    head = "".join(line for line in shipped_recipes()[name].read_text().splitlines(True) if line.startswith("#"))
    return [int(number.replace(",", "")) for number in re.findall(r"  # ([\d,]+)", head)]


def adapters_of(name: str) -> list[AdapterSection]:
    """A recipe's adapter, and the others that its comment names."""
    told = re.findall(r'adapter="(.*?)"', shipped_recipes()[name].read_text())
    recipes = [load_recipe(name), *(load_recipe(name, [f"adapter={knobs}"]) for knobs in told)]
    return [recipe.adapter for recipe in recipes if recipe.adapter]


@pytest.mark.parametrize(("name", "base"), [*NAMES.items(), (METAMATH, LLAMA)])
def test_a_recipe_tells_the_parameters_of_each_method(name: str, base: str) -> None:
    adapters = adapters_of(name)
    assert len(adapters) >= 3
    assert [counted(base, each) for each in adapters] == told(name)


def test_every_recipe_of_a_pipeline_at_full_size_is_in_the_table() -> None:
    assert {name for name in shipped_recipes() if name.startswith(("dreambooth_", "style_"))} == NAMES.keys()


def counted(base: str, adapter: AdapterSection) -> int:
    """The closed form."""
    return plan(adapter.config(), catalogue.targets(base, adapter.patterns)).params


@pytest.mark.slow
@pytest.mark.parametrize(("name", "base"), NAMES.items())
def test_a_recipe_of_a_pipeline_dry_runs(name: str, base: str, tmp_path: Path) -> None:
    found = dry_run(load_recipe(name, [f"model.name=diffusers:{configured(base, tmp_path)}"]))
    assert found["params"]["adapter"] == told(name)[0]
    (gib,) = re.findall(r"about ([\d.]+) GiB", shipped_recipes()[name].read_text())
    assert found["memory"]["total"] / 2**30 == pytest.approx(float(gib), rel=0.05)


@pytest.mark.slow
def test_the_sweep_of_pefts_benchmark_counts_what_the_model_has() -> None:
    model = catalogue.denoiser("flux.2-klein")
    for run in load_plan("peft_dreambooth").checked():
        assert run.recipe.adapter
        targets = expand(model, run.recipe.adapter.patterns)
        adapter = attach(model, targets, run.recipe.adapter.config(), shapes_only=True)
        assert adapter.params == run.params["adapter"]
        detach(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_a_recipe_of_a_suite_dry_runs(name: str) -> None:
    found = dry_run(load_recipe(name, ["train.steps=10", "train.epochs=null"]))
    params = re.findall(r"# ([\d,]+) parameters \+ head ([\d,]+)", shipped_recipes()[name].read_text())
    assert [(f"{found['params']['adapter']:,}", f"{found['params']['head']:,}")] == params
    (gib,) = re.findall(r"about ([\d.]+) GiB", shipped_recipes()[name].read_text())
    assert found["memory"]["total"] / 2**30 == pytest.approx(float(gib), abs=0.06)


@pytest.mark.slow
def test_the_recipe_of_a_language_model_dry_runs(tmp_path: Path) -> None:
    catalogue.language_model(LLAMA).config.save_pretrained(tmp_path)
    for file in (ASSETS / "sums_llama").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    text = shipped_recipes()[METAMATH].read_text()
    ((more, small),) = re.findall(r"#   (model.quantize=.*?)   # in ([\d.]+) GiB", text)
    (gib,) = re.findall(r"about ([\d.]+) GiB", text)
    for words, size in (((), gib), (more.split(), small)):
        found = dry_run(load_recipe(METAMATH, [f"model.name=transformers:{tmp_path}", *words]))
        assert found["params"]["adapter"] == told(METAMATH)[0]
        assert found["memory"]["total"] / 2**30 == pytest.approx(float(size), rel=0.05)
