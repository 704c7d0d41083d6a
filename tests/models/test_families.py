"""The denoiser in training is called just as its pipeline calls it, for every family."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from superlora_cli.models.families import FAMILIES
from superlora_cli.models.families.family import Family, recorded
from superlora_cli.models.families.noise import Diffusion, Flow
from superlora_cli.models.targets import expand, weights_of
from tests import pipelines

PROMPTS = ("a red seven on a blue ground, serif", "seven", "")
SIZES = ((1, 1), (2, 1))  # in a family's units
GUIDED = "Flux"  # whose denoiser takes guidance as an argument
OF_ANY_LENGTH = {"ZImage": "cap_feats", "QwenImage": "encoder_hidden_states"}  # a batch is as long as its longest text


def pair(name: str) -> tuple[Any, Family]:
    pipeline = pipelines.made(name)
    return pipeline, FAMILIES[type(pipeline).__name__]


def step_of(pipeline: Any, denoiser: Any, **call: Any) -> tuple[dict[str, Any], Tensor]:
    """What the denoiser is given in one step of the pipeline's own call, and what the scheduler is given of it."""
    given: list[dict[str, Any]] = []
    to_scheduler: list[Tensor] = []
    signature = inspect.signature(denoiser.forward)

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        given.append(dict(signature.bind(*args, **kwargs).arguments))

    step = pipeline.scheduler.step

    def stepped(output: Tensor, *args: Any, **kwargs: Any) -> Any:
        to_scheduler.append(output)
        return step(output, *args, **kwargs)

    hook = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    pipeline.scheduler.step = stepped
    try:
        family = FAMILIES[type(pipeline).__name__]
        pipeline(num_inference_steps=1, output_type="latent", **family.call, **call)
    finally:
        hook.remove()
        pipeline.scheduler.step = step
    return given[0], to_scheduler[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", pipelines.FAMILIES)
@torch.no_grad()
def test_training_calls_the_denoiser_as_the_pipeline_does(name: str, batch: int, size: tuple[int, int]) -> None:
    pipeline, family = pair(name)
    size = pipelines.unit(name) * size[0], pipelines.unit(name) * size[1]
    denoiser = getattr(pipeline, family.denoiser)
    prompts, guidance = list(PROMPTS[:batch]), 2.5 if family.guided else family.unguided
    generators = [torch.Generator().manual_seed(number) for number in range(batch)]
    theirs, to_scheduler = step_of(
        pipeline, denoiser, prompt=list(prompts), width=size[0], height=size[1], guidance_scale=guidance,
        generator=generators,
    )  # fmt: skip
    noisy = theirs[family.noisy]
    if isinstance(noisy, list):  # of images of one frame each
        noisy = torch.stack(noisy)[:, :, 0]
    alone = [family.conditions(pipeline, [prompt], size, guidance) for prompt in prompts]
    time = pipeline.scheduler.timesteps[0].expand(batch)
    ours: list[dict[str, Any]] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        ours.append(kwargs)

    hook = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        prediction = family.predict(denoiser, noisy, time, family.together(alone))
    finally:
        hook.remove()
    assert torch.equal(ours[0].pop(family.time), theirs.pop(family.time).expand(batch))
    shapes = {name: value for name, value in theirs.items() if isinstance(value, Tensor)}
    assert {name: value.shape for name, value in ours[0].items() if name in shapes} == {
        name: value.shape for name, value in shapes.items()
    }
    torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(prediction, to_scheduler, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in pipelines.FAMILIES if name != GUIDED])
@torch.no_grad()
def test_an_image_without_a_caption_is_what_guidance_leads_away_from(name: str) -> None:
    pipeline, family = pair(name)
    denoiser, side = getattr(pipeline, family.denoiser), pipelines.unit(name)
    given: list[dict[str, Any]] = []
    signature = inspect.signature(denoiser.forward)

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        given.append(dict(signature.bind(*args, **kwargs).arguments))

    hook = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    call = {"width": side, "height": side, "num_inference_steps": 1, "output_type": "latent", **family.call}
    pipeline(prompt=["a red seven"], **call, **family.steered(4.0, None))
    hook.remove()
    images = [one for call in given for one in apart(call, 3 - len(given))]  # in one call or in two
    found = family.dropped(pipeline, (side, side))
    assert sum(alike({key: image[key] for key in found}, found) for image in images) == 1


def apart(call: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The arguments of the denoiser for each of its images alone."""

    def part(value: Any, number: int) -> Any:
        if isinstance(value, dict):
            return {key: part(each, number) for key, each in value.items()}
        rows = isinstance(value, Tensor | list) and (value.dim() if isinstance(value, Tensor) else 1) and len(value)
        return value[number : number + 1] if rows == count else value

    return [part(call, number) for number in range(count)]


def alike(one: Any, other: Any) -> bool:
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("name", pipelines.FAMILIES)
@torch.no_grad()
def test_latents_are_those_that_the_pipeline_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline whose only step ends at our latents of an image shows what the autoencoder keeps of it."""
    pipeline, family = pair(name)
    side = pipelines.unit(name)
    image = torch.rand(2, 3, side, 2 * side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = family.latents(pipeline.vae, image)
    monkeypatch.setattr(pipeline.scheduler, "step", lambda *args, **kwargs: (latents,))
    size = {"width": 2 * side, "height": side, **family.call}
    shown = pipeline(prompt=["a", "b"], num_inference_steps=1, guidance_scale=1.0, output_type="pt", **size)
    film = isinstance(pipeline.vae, diffusers.AutoencoderKLQwenImage)
    kept = pipeline.vae(image[:, :, None]).sample[:, :, 0] if film else pipeline.vae(image).sample
    torch.testing.assert_close(shown.images, (kept / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_images_are_noised_as_the_pipelines_scheduler_does(name: str, place: int) -> None:
    """Up to the scale that the pipeline gives to the denoiser."""
    pipeline, family = pair(name)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    generator = torch.Generator()
    latents, noise = (torch.randn(1, 4, 8, 8, generator=generator.manual_seed(seed)) for seed in range(2))
    made = family.noise(scheduler)
    scheduler.set_timesteps(4, **({"mu": 0.7} if scheduler.config.get("use_dynamic_shifting") else {}))
    time = scheduler.timesteps[[place]]
    if isinstance(made, Flow) and not hasattr(scheduler, "scale_noise"):
        theirs = scheduler.add_noise(latents, noise, time)
        time = 1000 * scheduler.sigmas[list(scheduler.timesteps).index(time[0]), None]  # its timesteps are rounded
    elif isinstance(made, Flow):
        theirs = scheduler.scale_noise(latents, time, noise)
    else:
        theirs = scheduler.scale_model_input(scheduler.add_noise(latents, noise, time), time[0])
    own = time if isinstance(made, Flow) else time.long()
    torch.testing.assert_close(made.noisy(latents, noise, own), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_prediction_leads_back_to_the_image(predicts: str) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(prediction_type=predicts, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(1)
    made = Diffusion(scheduler)
    latents, noise, time = torch.rand(1, 4, 8, 8), torch.randn(1, 4, 8, 8), scheduler.timesteps[:1]
    noisy = made.noisy(latents, noise, time)
    found = scheduler.step(made.target(latents, noise, time), time[0], noisy).pred_original_sample
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-4)


def test_a_perfect_direction_leads_back_to_the_image() -> None:
    pipeline, _ = pair("StableDiffusion3")
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(1)
    made, latents, noise = Flow(scheduler), torch.rand(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    time = scheduler.timesteps[:1]
    found = scheduler.step(made.target(latents, noise, time), time[0], made.noisy(latents, noise, time)).prev_sample
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_conditions_are_differentiable_in_every_text_encoder_and_the_same(name: str) -> None:
    pipeline, family = pair(name)
    prompts, size = list(PROMPTS[:2]), (pipelines.unit(name),) * 2
    with torch.no_grad():
        plain = family.conditions(pipeline, prompts, size)
    made = family.conditions(pipeline, prompts, size)
    torch.testing.assert_close(
        *({key: value for key, value in part.items() if value is not None} for part in (made, plain)), rtol=0, atol=5e-5
    )
    values = [*made.values(), *(made.get("added_cond_kwargs") or {}).values()]
    tensors = [part for value in values for part in (value if isinstance(value, list) else [value])]
    total = sum(part.sum() for part in tensors if isinstance(part, Tensor) and part.requires_grad)
    for encoder in family.encoders:
        weights = list(getattr(pipeline, encoder).parameters())  # of an encoder that sees images, some are not used
        found = torch.autograd.grad(total, weights, retain_graph=True, allow_unused=True)
        assert any(part is not None and part.abs().sum() > 0 for part in found)


@torch.no_grad()
def test_a_denoiser_that_is_not_called_is_an_error() -> None:
    pipeline, _ = pair("StableDiffusion")
    with pytest.raises(RuntimeError, match="did not call"):
        recorded(pipeline, torch.nn.Linear(1, 1), prompt="a", num_inference_steps=1, width=16, height=16)


@pytest.mark.parametrize("name", pipelines.FAMILIES)
@torch.no_grad()
def test_the_example_for_memory_has_the_shapes_of_a_real_batch(name: str) -> None:
    pipeline, family = pair(name)
    denoiser, size = getattr(pipeline, family.denoiser), (2 * pipelines.unit(name), pipelines.unit(name))
    scale = family.scale(pipeline.vae.config)
    shape, example = family.example(denoiser, (size[0] // scale, size[1] // scale), 2)
    latents = family.latents(pipeline.vae, torch.zeros(2, 3, size[1], size[0]))
    real = family.together([family.conditions(pipeline, [prompt], size) for prompt in PROMPTS[:2]])
    assert shape == latents.shape
    ours, theirs = shapes_in(example), shapes_in(real)
    masks = {"encoder_hidden_states_mask"} if name == "QwenImage" else set()  # only of texts of unequal length
    assert ours.keys() == theirs.keys() - masks
    for key in ours:
        shape = theirs[key]
        if OF_ANY_LENGTH.get(name) == key.partition(".")[0]:
            assert shape[-2] <= ours[key][-2]
            shape = (*shape[:-2], ours[key][-2], shape[-1])
        assert ours[key] == shape, key


def shapes_in(value: Any, name: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of nested dicts and lists, by dotted name."""
    if isinstance(value, Tensor):
        return {name: tuple(value.shape)}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, tuple[int, ...]] = {}
    for key, part in parts:
        found |= shapes_in(part, f"{name}.{key}".removeprefix("."))
    return found


@pytest.mark.parametrize("name", pipelines.FAMILIES)
def test_the_short_names_are_all_projections_of_attention_and_mlps(name: str) -> None:
    pipeline, family = pair(name)
    denoiser = getattr(pipeline, family.denoiser)
    rows: dict[str, list[tuple[int, int]]] = {}
    for word in ("q", "k", "v", "o", "mlp"):
        for target in expand(denoiser, [word]):
            rows.setdefault(target.module, []).append((target.start, target.stop))
    inside = re.compile(r"blocks\.\d|^layers\.|refiner\.")
    for module, weight in weights_of(denoiser).items():
        wanted = inside.search(module) and re.search(r"attn|attention|ff|mlp|feed_forward", module)
        wanted = wanted and not re.search(r"resnets|samplers|attentions\.\d\.proj", module)
        found = sorted(rows.get(module, []))
        assert (sum(stop - start for start, stop in found) == weight.shape[0]) == bool(wanted), module
        assert all(first[1] == second[0] for first, second in pairwise(found))


def test_guidance_of_qwen_image_is_away_from_a_prompt() -> None:
    _, family = pair("QwenImage")
    assert family.steered(None, None) == {}
    assert family.steered(4.0, None) == {"true_cfg_scale": 4.0, "negative_prompt": " "}
    assert family.steered(4.0, "grey") == {"true_cfg_scale": 4.0, "negative_prompt": "grey"}
    assert pair("Flux")[1].steered(2.0, "grey") == {"guidance_scale": 2.0, "negative_prompt": "grey"}
