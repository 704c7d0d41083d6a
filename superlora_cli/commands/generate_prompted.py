"""Generate images from prompts, by the pipeline of a text-to-image run or an adapter, or a shipped one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from superlora_cli.adapter.activations import no_delta
from superlora_cli.adapter.attach import detach, settle
from superlora_cli.adapter.layers import stored_parameter
from superlora_cli.commands.generate import check_start, open_source, recipe_of_source
from superlora_cli.commands.making_images import made_by, make_images
from superlora_cli.commands.prompts import read_prompts
from superlora_cli.errors import UsageError
from superlora_cli.generation.folder import ImagesFolder, image_name
from superlora_cli.generation.grid import labelled_grid
from superlora_cli.models.pipelines import PipelineBase, placed
from superlora_cli.opening.build import Built
from superlora_cli.progress import with_bar
from superlora_cli.tasks.text_to_image.painting import painted
from superlora_cli.tasks.text_to_image.reading import captions_of
from superlora_cli.tasks.text_to_image.section import TextToImageSection
from superlora_cli.training.processes import Processes

SCALES = (1.0,)


class Wanted(NamedTuple):
    """An image to make: the scale of ΔW, its prompt, and the seed of its noise."""

    scale: float
    prompt: str
    seed: int


def read_scales(text: str | None) -> tuple[float, ...]:
    """`0,0.5,1` → the scales, each once; 1 by default.

    Raises:
        UsageError: one is not a number.
    """
    try:
        found = tuple(dict.fromkeys(map(float, text.split(",")))) if text is not None else SCALES
        if not all(abs(scale) < float("inf") for scale in found):
            raise ValueError
    except ValueError:
        raise UsageError(f"'{text}' is not a list of numbers", where="--scale", hint="--scale 0,0.5,1") from None
    return found


def read_size(text: str | None, base: PipelineBase) -> tuple[int, int]:
    """`512x768` → width and height; by default the size of training.

    Raises:
        UsageError: it is not two numbers, or the pipeline cannot generate that size.
    """
    if text is None:
        return base.image_size, base.image_size
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"'{text}' is not a size", where="--size", hint="--size 512x768, width and height")
    size = int(words[0]), int(words[1])
    if any(side % base.multiple for side in size):
        raise UsageError(f"{text} is not a multiple of {base.multiple}", where="--size", hint="round both sides")
    return size


def generate_prompted(
    source: str,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    negative: str | None = None,
    num: int = 1,
    scale: str | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int = 8,
    in_turn: bool = False,
    force: bool = False,
    reuse: bool = False,
    allow_mismatch: bool = False,
) -> dict[str, Any]:
    """Write `num` images of every prompt at every scale, a grid of them and a manifest to the folder `out`.

    Image i of every prompt has the seed `seed` + i, at every scale. The adapter is merged into the base first.

    Args:
        source: a run folder, an adapter or model file, or the name of a shipped pipeline.
        in_turn: `num` images in all, of the prompts in turn; without prompts, of the captions of the test images.
        scale: numbers that ΔW is multiplied by, separated by commas.
        size: width and height, `512x768`.
        steps, guidance: of the pipeline's own scheduler; default: the pipeline's.
        force: replace generated images in the folder.
        reuse: keep the images in the folder if they were made with the same settings.

    Returns:
        images (their folder), grid (the file), num, prompts, scales, seed, size, steps, guidance, model, params (the
        adapter's), seconds.

    Raises:
        UsageError: a setting is wrong, or the folder is not empty. MismatchError: the
            base is not the adapter's. InterruptedRunError: by Ctrl-C; every image written is complete.
    """
    folder = ImagesFolder(out)
    folder.check(force=force)
    check_start(num=num, batch_size=batch_size, steps=steps)
    recipe, scales = recipe_of_source(source, overrides), read_scales(scale)
    captions = captions_of(recipe, "test") if in_turn and not (prompts or prompts_file) else prompts
    chosen = read_prompts(captions, prompts_file)
    built, about = open_source(source, overrides, allow_mismatch)
    base = built.base
    assert isinstance(base, PipelineBase)
    if scales != SCALES:
        _check_scaling(built, base)
    if negative is not None and base.family.guided:
        raise UsageError("guidance is an input of this model", where="--negative", hint="leave it out")
    if negative is not None and not base.family.takes_negative:
        raise UsageError("the pipeline takes no negative prompt", where="--negative", hint="leave it out")
    width, height = read_size(size, base)
    call = {**base.family.call, **base.family.steered(guidance, negative)}
    if steps is not None:
        call["num_inference_steps"] = steps
    if in_turn:
        own = [(chosen[number % len(chosen)], seed + number) for number in range(num)]
        chosen = list(dict.fromkeys(prompt for prompt, _ in own))
    else:
        own = [(prompt, seed + number) for prompt in chosen for number in range(num)]
    wanted = [Wanted(factor, *image) for factor in scales for image in own]
    images = {image_name(index, image.prompt): image._asdict() for index, image in enumerate(wanted)}

    def make(processes: Processes) -> Generator[Tensor, None, None]:
        scale_to = _scaled(built, scales)
        pipeline = placed(base.pipeline(), processes.device, offload=built.recipe.section(TextToImageSection).offload)

        def paint(part: Sequence[Wanted]) -> Tensor:
            scale_to(part[0].scale)
            with processes.autocast():
                texts, seeds = [image.prompt for image in part], [image.seed for image in part]
                return painted(pipeline, texts, seeds, (width, height), **call)

        bar = with_bar(_parts(wanted, batch_size), "images", total=len(wanted), size=len)
        return (image for part in bar for image in paint(part))

    def grid(made: Tensor) -> bytes:
        rows = list(dict.fromkeys((image.prompt, image.scale) for image in wanted))
        titles = [prompt if len(scales) == 1 else f"{factor:g} × {prompt}" for prompt, factor in rows]
        numbers = [rows.index((image.prompt, image.scale)) for image in wanted]
        return labelled_grid(made, numbers, titles, f"{made_by(about)}, seed {seed}")

    told = {
        "num": len(wanted),
        "prompts": chosen,
        "scales": list(scales),
        "seed": seed,
        "size": [width, height],
        "steps": steps,
        "guidance": guidance,
    }
    return make_images(
        folder, images, make, grid, recipe=built.recipe, about=about, chosen=told,
        fixed={"negative": negative, "base_sha256": built.base_digest[0]}, reuse=reuse,
    )  # fmt: skip


def _check_scaling(built: Built, base: PipelineBase) -> None:
    if built.adapter is None:
        raise UsageError("there is no adapter to scale", where="--scale", hint="leave it out")
    if built.adapter.config.activates:
        raise no_delta(built.adapter.config.activation, "--scale")
    if base.quantize:
        raise UsageError("needs an adapter that can be merged", where="--scale", hint="a base without model.quantize")


def _parts(wanted: Sequence[Wanted], most: int) -> list[Sequence[Wanted]]:
    """Images that are made together: of one scale, at most so many."""
    found: list[Sequence[Wanted]] = []
    for _, group in groupby(wanted, key=lambda image: image.scale):
        own = list(group)
        found += [own[start : start + most] for start in range(0, len(own), most)]
    return found


def _scaled(built: Built, scales: Sequence[float]) -> Callable[[float], None]:
    """Merge the adapter, if no weight is quantised. The function makes the weights those of the base plus the adapter
    times a number."""
    if built.adapter is None or tuple(scales) == SCALES:
        settle(built.model)
        return lambda scale: None
    names = {f"{target.module}.weight" for target in built.adapter.targets} | {*built.also}
    with torch.no_grad():
        built.adapter.to(next(built.model.parameters()).device)
        plain = {name: stored_parameter(built.model, name).detach().clone() for name in names}
        detach(built.model, merge=True)
        whole = {name: stored_parameter(built.model, name).detach().clone() for name in names}
    now = [1.0]

    @torch.no_grad()
    def scale_to(scale: float) -> None:
        if scale == now[0]:
            return
        now[0] = scale
        for name in names:
            own = stored_parameter(built.model, name)
            value = whole[name] if scale == 1 else plain[name] + scale * (whole[name] - plain[name])
            own.copy_(value)

    return scale_to
