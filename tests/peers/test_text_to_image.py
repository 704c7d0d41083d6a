"""LoRA on a pipeline is that of diffusers and PEFT: with equal factors, noise and times, equal loss and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.plain_pipeline import Plain
from superlora_cli.adapter.module import SuperLora
from superlora_cli.models.pipelines import PipelineBase, build_pipeline
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.tasks.text_to_image.objective import Objective
from superlora_cli.tasks.text_to_image.section import TextToImageSection

RANK, BATCH = 3, 4
RECIPE = {
    "task": "text-to-image",
    "model": {"name": "glyphs_text"},
    "data": {"name": "digits"},
    "adapter": {"method": "lora", "rank": RANK, "targets": ["q", "k", "v", "o"], "scaling": "alpha", "alpha": 1},
    "train": {"steps": 1, "optimizer": {"lr": 0.1}},
}


def pairs(adapter: SuperLora, plain: Plain) -> Iterator[tuple[Tensor, int, Tensor, bool]]:
    """(our factors of some layers, the place in them, PEFT's factor, whether that is ours transposed)."""
    layers = dict(plain.unet.named_modules())
    for bucket in adapter.plan.buckets:
        for place, number in enumerate(bucket.members):
            layer = layers[adapter.targets[number].module]
            for name, theirs in (("A1", layer.lora_B), ("A2", layer.lora_A)):
                yield adapter.factors[f"b{bucket.number}_k1_{name}"], place, theirs.default.weight, name == "A2"


@pytest.mark.parametrize("passes", [1, 2])
def test_loss_and_gradients_are_those_of_a_plain_loop(passes: int) -> None:
    built, draw = build_for_training(recipe_from_dict(RECIPE, "the test")), torch.Generator().manual_seed(0)
    base, adapter = built.base, built.adapter
    assert isinstance(base, PipelineBase)
    assert adapter is not None
    other_unet = build_pipeline(ModelSection(name="glyphs_text")).model
    plain = Plain(other_unet, base.scheduler, rank=RANK, lr=0.1, steps=1)
    objective = Objective(base, TextToImageSection(), lambda captions, size: {})
    with torch.no_grad():
        for ours, place, theirs, transposed in pairs(adapter, plain):
            theirs.copy_(torch.randn(theirs.shape, generator=draw) * 0.1)
            ours[place, 0] = theirs.T if transposed else theirs
    with adapter.one_step():
        for _ in range(passes):
            latents, noise = (torch.randn(BATCH, 4, 8, 8, generator=draw) for _ in range(2))
            words = torch.randn(BATCH, 77, 64, generator=draw)
            times = torch.randint(1000, (BATCH,), generator=draw)
            conditions = {"encoder_hidden_states": words}
            own = objective.errors(built.model, latents, noise, times, conditions, torch.device("cpu")).mean()
            other = plain.loss(latents, words, noise, times)
            assert own.item() == pytest.approx(other.item(), rel=1e-5)
            own.backward()
            other.backward()
    compared = 0
    for ours, place, theirs, transposed in pairs(adapter, plain):
        assert ours.grad is not None
        assert theirs.grad is not None
        wanted = theirs.grad.T if transposed else theirs.grad
        assert (ours.grad[place, 0] - wanted).norm() <= 1e-5 * wanted.norm()
        compared += 1
    assert compared == len(plain.parameters) == 2 * len(adapter.targets)
