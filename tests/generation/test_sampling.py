"""An image depends on seed, index, class and settings alone, and follows the formulas of guidance and samplers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from superlora_cli.adapter.attach import attach, detach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.errors import RunError, UsageError
from superlora_cli.generation.extractors import load_extractor
from superlora_cli.generation.sampling import (
    PASS,
    SAMPLERS,
    NoiseSchedule,
    Sampler,
    guided_noise,
    image_generator,
    sample,
    sample_batches,
)
from superlora_cli.models.build import build
from superlora_cli.models.targets import expand
from superlora_cli.recipe.schema import ModelSection
from tests.generation.standin import stand_in

SIZE = 8
SHORT = NoiseSchedule(steps=20, beta_start=0.005, beta_end=0.4)
TOGETHER = PASS["cpu"]


def images(classes: Any = (0, 3, 7), **settings: Any) -> Tensor:
    """(N, 3, 8, 8) uint8 from the stand-in, on a schedule of 20 steps."""
    settings = {"schedule": SHORT, "steps": 10, "image_size": SIZE, **settings}
    return sample(settings.pop("model", None) or stand_in(), classes, **settings)


@pytest.mark.parametrize("guidance", [0.0, 1.8])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_do_not_depend_on_the_batch_size(sampler: Sampler, guidance: float) -> None:
    classes = [i % 10 for i in range(35)]
    one = images(classes, sampler=sampler, guidance=guidance, batch_size=100)
    assert one.shape == (35, 3, SIZE, SIZE)
    assert one.dtype == torch.uint8
    for size in (1, 7, 16, 32, 33):
        assert torch.equal(images(classes, sampler=sampler, guidance=guidance, batch_size=size), one)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_do_not_depend_on_how_many_others_there_are(sampler: Sampler) -> None:
    many = images([1] * 20, sampler=sampler)
    assert torch.equal(images([1] * 3, sampler=sampler), many[:3])
    assert torch.equal(images([1, 2, 3, 1, *range(9)], sampler=sampler)[[0, 3]], many[[0, 3]])


def test_the_model_always_sees_the_same_number_of_images() -> None:
    model = stand_in()
    images([0] * 18, model=model, batch_size=5, guidance=2.0)
    assert {shape for shape, _, _ in model.calls} == {(2 * TOGETHER, 3, SIZE, SIZE)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_images_depend_on_seed_index_and_class(sampler: Sampler) -> None:
    one = images([0, 0, 1], sampler=sampler, seed=1)
    assert torch.equal(one, images([0, 0, 1], sampler=sampler, seed=1))
    assert (one != images([0, 0, 1], sampler=sampler, seed=2)).flatten(1).any(1).all()
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[2], images([0, 0, 0], sampler=sampler, seed=1)[2])


def test_the_random_numbers_of_the_process_are_left_alone() -> None:
    before = torch.get_rng_state()
    images(sampler="ddpm")
    assert torch.equal(before, torch.get_rng_state())


def test_guidance_is_the_formula_with_both_halves_in_one_pass() -> None:
    model, x = stand_in(), torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    classes, steps = torch.tensor([0, 3, 7, 9]), torch.full((4,), 5)
    with torch.no_grad():
        found = guided_noise(model, x, 5, classes, 1.8)
        assert [(shape[0], labels) for shape, _, labels in model.calls] == [(8, [1, 4, 8, 10, 0, 0, 0, 0])]
        conditional, unconditional = model(x, steps, classes + 1), model(x, steps, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(found, 2.8 * conditional - 1.8 * unconditional)


def test_without_guidance_the_null_class_is_never_asked_for() -> None:
    model = stand_in()
    images([0, 9], model=model, guidance=0.0)
    assert all(shape[0] == TOGETHER and 0 not in labels for shape, _, labels in model.calls)


def test_class_c_is_label_c_plus_1() -> None:
    model = stand_in()
    images([0, 3, 9], model=model, guidance=0.0, steps=1)
    ((_, steps, labels),) = model.calls
    assert labels[:3] == [1, 4, 10]
    assert set(steps) == {19}  # the noisiest


@pytest.mark.parametrize("steps", [20, 5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_follow_diffusers_own_loop_on_the_same_noise(sampler: Sampler, steps: int) -> None:
    steps -= sampler == "dpm++"
    common = {"num_train_timesteps": 20, "beta_start": 0.005, "beta_end": 0.4}
    scheduler: Any = {
        "ddpm": lambda: DDPMScheduler(**common, timestep_spacing="trailing"),
        "ddim": lambda: DDIMScheduler(**common, timestep_spacing="trailing"),
        "dpm++": lambda: DPMSolverMultistepScheduler(**common, thresholding=True, sample_max_value=1.0),
    }[sampler]()
    scheduler.set_timesteps(steps)
    model, classes, wanted = stand_in(), [4, 8], []
    for index, number in enumerate(classes):  # one by one, each with its own noise
        generator = image_generator(3, index)
        x = torch.randn(1, 3, SIZE, SIZE, generator=generator)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            with torch.no_grad():
                noise = model(x, t[None], torch.tensor([number + 1]))
            x = scheduler.step(noise, t, x, generator=generator).prev_sample
        wanted.append(x[0])
    expected = (torch.stack(wanted).clamp(-1, 1) + 1) * 127.5
    found = images(classes, model=model, sampler=sampler, steps=steps, seed=3, guidance=0.0)
    assert (found - expected).abs().max() < 0.51  # rounding, and the last bits of other batch sizes
    assert found.float().std() > 20


def test_ddim_steps_are_the_papers_formula() -> None:
    """x₀ = (x − √(1−ᾱ)·ε)/√ᾱ, clipped; then √ᾱ'·x₀ + √(1−ᾱ')·ε (arXiv 2010.02502, Eq. 12 with σ = 0)."""
    model, steps = stand_in(), [19, 9]
    remains = torch.cumprod(1 - torch.linspace(0.005, 0.4, 20), 0)
    x = torch.randn(1, 3, SIZE, SIZE, generator=image_generator(0, 0))
    with torch.no_grad():
        for t, after in zip(steps, [remains[9], torch.tensor(1.0)], strict=True):
            noise = guided_noise(model, x, t, torch.tensor([2]), 1.0)
            clean = ((x - (1 - remains[t]).sqrt() * noise) / remains[t].sqrt()).clamp(-1, 1)
            x = after.sqrt() * clean + (1 - after).sqrt() * noise
    found = images([2], model=model, sampler="ddim", steps=2, guidance=1.0)
    assert (found - (x.clamp(-1, 1) + 1) * 127.5).abs().max() < 0.51


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_every_image_and_step(sampler: Sampler) -> None:
    done: list[int] = []
    images([0] * 20, sampler=sampler, batch_size=16, on_step=done.append)
    assert done == [16] * 10 + [4] * 10


def test_batches_come_in_order() -> None:
    batches = sample_batches(stand_in(), [0] * 40, image_size=SIZE, schedule=SHORT, steps=2, batch_size=16)
    assert [len(batch) for batch in batches] == [16, 16, 8]
    assert sample(stand_in(), [], image_size=SIZE).shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_default_steps_are_steps_that_the_sampler_can_take(sampler: Sampler) -> None:
    for schedule in (NoiseSchedule(), SHORT, NoiseSchedule(steps=97)):
        steps = schedule.default_steps(sampler)
        assert schedule.checked_steps(sampler, None) == schedule.checked_steps(sampler, steps) == steps
    assert NoiseSchedule().default_steps(sampler) == {"ddpm": 1000, "ddim": 50, "dpm++": 25}[sampler]


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        ({"sampler": "euler"}, "--sampler", "ddpm, ddim, dpm++"),
        ({"steps": 0}, "--steps", "1 to 20"),
        ({"steps": 21}, "--steps", "1 to 20"),
        ({"steps": 7}, "--steps", "5 or 10"),
        ({"steps": 20, "sampler": "dpm++"}, "--steps", "at most 19"),
        ({"guidance": -1.0}, "--guidance", "0 or more"),
        ({"guidance": float("nan")}, "--guidance", "0 or more"),
        ({"batch_size": 0}, "--batch-size", "1 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        images(**settings)
    assert caught.value.where == where
    assert words in str(caught.value)


def test_a_model_that_gives_nan_is_an_error() -> None:
    model = stand_in()
    torch.nn.init.constant_(model.conv_out.weight, float("nan"))
    with pytest.raises(RunError, match="NaN"):
        images(model=model)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_an_adapter_attached_and_merged_draw_the_same_images(sampler: Sampler) -> None:
    """Within one of 255 brightness levels: merging rounds W + ΔW once, and a sampler carries that on."""
    base = build(ModelSection(name="glyphs_unet", head="frozen"), classes=10)
    model = base.model.eval()
    settings: dict[str, Any] = {"image_size": base.image_size, "sampler": sampler, "steps": 5, "seed": 3}
    adapter = attach(model, expand(model, ["q", "v"]), AdapterConfig.from_knobs("lorta", rank=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor += 0.1 * torch.randn(factor.shape, generator=generator)
    classes = list(range(2))
    attached = sample(model, classes, **settings)
    detach(model, merge=True)
    merged = sample(model, classes, **settings)
    assert (attached.int() - merged.int()).abs().max() <= 1
    plain = sample(build(ModelSection(name="glyphs_unet", head="frozen"), classes=10).model.eval(), classes, **settings)
    assert (plain.int() - merged.int()).abs().max() > 50


@pytest.mark.slow
def test_the_shipped_base_draws_the_class_asked_for() -> None:
    base = build(ModelSection(name="glyphs_unet", head="frozen"), classes=10)
    classes = torch.arange(60) % 10
    images = sample(base.model.eval(), classes, image_size=base.image_size, sampler="dpm++", steps=20)
    logits, _ = load_extractor("digits").module(images)
    assert (logits.argmax(1) == classes).float().mean() >= 0.85  # 0.94 of 300
