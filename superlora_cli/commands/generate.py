"""Generate images with a diffusion run, an adapter or model file, or a shipped base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import Tensor

from superlora_cli.adapter import store
from superlora_cli.adapter.attach import settle
from superlora_cli.commands.making_images import made_by, make_images
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.generation.display import SamplingDisplay
from superlora_cli.generation.folder import ImagesFolder, image_name
from superlora_cli.generation.grid import labelled_grid
from superlora_cli.generation.sampling import GUIDANCE, NoiseSchedule, Sampler, check_amounts, sample_batches
from superlora_cli.launch import launched
from superlora_cli.models.embedded import ASSETS, EMBEDDED, LANGUAGE, PIPELINES
from superlora_cli.models.pipelines import is_pipeline
from superlora_cli.opening.base import open_base
from superlora_cli.opening.build import Built, build_from_file
from superlora_cli.opening.model_file import read_model
from superlora_cli.opening.results import base_named, resolve_result
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS
from superlora_cli.tasks.diffusion.section import DiffusionSection
from superlora_cli.tasks.images import names_of
from superlora_cli.training.processes import Processes
from superlora_cli.weights.checksum import digest_tensors

SHOWN = 8  # classes in a hint
ANY = "any"  # stands for the class if the model is unconditional


def generate(
    source: str,
    out: Path,
    console: Console,
    overrides: Sequence[str] = (),
    *,
    num: int = 100,
    classes: str | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int = 64,
    force: bool = False,
    reuse: bool = False,
    allow_mismatch: bool = False,
) -> dict[str, Any]:
    """Write `num` images, a grid of them and a manifest to the folder `out`.

    The adapter is merged into the base first, so sampling steps do not pay for it. Nothing is written before the model
    is built and all settings are checked.

    Args:
        source: a run folder, an adapter or model file, or the name of a shipped diffusion base.
        classes: names or numbers, separated by commas, which the images take in turn. Default: all.
        guidance: default 1.8; 0 for an unconditional model.
        force: replace generated images in the folder.
        reuse: keep the images in the folder if they were made with the same settings.

    Returns:
        images (their folder), grid (the file), num, seed, sampler, steps, guidance, classes, model, adapter parameters,
        seconds.

    Raises:
        UsageError: a setting is wrong, the source cannot generate, or the folder is not empty. MismatchError: the base
            is not the adapter's. InterruptedRunError: by Ctrl-C; every image written is complete.
    """
    folder = ImagesFolder(out)
    folder.check(force=force)
    check_start(num=num)
    built, about = open_source(source, overrides, allow_mismatch)
    model, names = built.model, _class_names(built)
    chosen = _choose(classes, names, min(len(built.class_names) or len(names), len(names)))
    conditional = names != [ANY]
    if guidance and not conditional:
        raise UsageError("the model has no classes to guide towards", where="--guidance", hint="leave it out")
    weight = (GUIDANCE if conditional else 0.0) if guidance is None else guidance
    schedule = _schedule(built.recipe)
    taken = schedule.checked_steps(sampler, steps)
    check_amounts(weight, batch_size)
    shown = [chosen[index % len(chosen)] for index in range(num)]
    images = {image_name(index, names[number]): names[number] for index, number in enumerate(shown)}
    settle(model)

    def make(processes: Processes) -> Generator[Tensor, None, None]:
        display = SamplingDisplay(console, images=num, steps=taken)
        batches = sample_batches(
            processes.place(model).eval(),
            shown,
            image_size=built.base.image_size,
            sampler=cast(Sampler, sampler),
            steps=taken,
            guidance=weight,
            seed=seed,
            batch_size=batch_size,
            schedule=schedule,
            on_step=display.step,
        )
        with display, processes.autocast():
            for batch in batches:
                yield from batch

    chosen_settings = {
        "num": num,
        "classes": [names[number] for number in chosen],
        "seed": seed,
        "sampler": sampler,
        "steps": taken,
        "guidance": weight,
    }
    fixed = {
        "weights_sha256": digest_tensors(model.state_dict()),
        "noise": vars(schedule),
        "image_size": built.base.image_size,
    }
    caption = f"{made_by(about)}, {sampler}, {taken} steps, guidance {weight:g}, seed {seed}"
    return make_images(
        folder, images, make, lambda made: labelled_grid(made, shown, names, caption),
        recipe=built.recipe, about=about, chosen=chosen_settings, fixed=fixed, reuse=reuse,
    )  # fmt: skip


def check_start(**counts: int | None) -> None:
    """Refuse several processes, and counts below 1, given by the names of their options.

    Raises:
        UsageError: names what is wrong.
    """
    if launched() > 1:
        raise UsageError(f"launched as {launched()} processes", where="superlora generate",
                         hint="start it as a single process")  # fmt: skip
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"{count} is too few", where=f"--{name.replace('_', '-')}", hint="1 or more")


def recipe_of_source(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a run folder, an adapter or model file, or a base that can generate images or text.

    Raises:
        UsageError: there is no such source, or its task generates nothing.
    """
    path = Path(source)
    if (base := base_named(source)) is not None:
        return recipe_from_dict(recipe_of_base(base), source, overrides)
    if path.exists():
        file, kind = resolve_result(path), "run"
        model = read_model(file)
        data = dict(
            model.recipe if model else store.load(file).recipe
        )  # raises an error that says what else the file is
    elif source in EMBEDDED:
        data, kind = _provenance(source)["recipe"], "base"
    else:
        near = did_you_mean(source, [*EMBEDDED, *PIPELINES, *LANGUAGE])
        hint = (
            near or "a run folder, an adapter.safetensors, or a base: a shipped one, transformers:NAME, diffusers:NAME"
        )
        raise UsageError("no such run, adapter or base", where=source, hint=hint)
    task = data.get("task") if isinstance(data, dict) else None
    known = TASKS[task] if isinstance(task, str) and task in TASKS else None
    if known is None or known.generates is None:
        able = " or ".join(name for name, one in TASKS.items() if one.generates)
        message = f"a {task} {kind} cannot generate images or text"
        raise UsageError(message, where=source, hint=f"use a {kind} with task: {able}")
    if kind == "base":
        data["model"] |= {"pretrained": True}
    return recipe_from_dict(data, source, overrides)


def recipe_of_base(name: str) -> dict[str, Any]:
    """The recipe that a pipeline or language model stands for; it says nothing about training."""
    pipeline = is_pipeline(name)
    return {
        "task": "text-to-image" if pipeline else "language",
        "model": {"name": name},
        "data": {"name": "glyphs" if pipeline else "sums"},
        "train": {"steps": 1, "optimizer": {"lr": 0.0}},
    }


def open_source(source: str, overrides: Sequence[str], allow_mismatch: bool) -> tuple[Built, dict[str, Any]]:
    """The model with its adapter, and what the manifest says about both."""
    recipe, path = recipe_of_source(source, overrides), Path(source)
    if base_named(source) is not None or not path.exists():
        return Built(recipe, open_base(recipe), None, ("", "")), {"model": source, "adapter": None}
    file = resolve_result(path)
    built = build_from_file(file, overrides, allow_mismatch=allow_mismatch)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    if built.adapter is None:
        return built, {"model": built.recipe.model.name, "model_sha256": sha256, "adapter": None}
    adapter = {"file": file.name, "sha256": sha256, "params": built.adapter.params}
    return built, {"model": built.recipe.model.name, "adapter": adapter}


def _provenance(name: str) -> dict[str, Any]:
    """How a shipped base was trained."""
    found: dict[str, Any] = json.loads((ASSETS / EMBEDDED[name].weights).with_suffix(".json").read_text())
    return found


def _class_names(built: Built) -> list[str]:
    """A name for every class that the model can be conditioned on: numbers for those without one."""
    known = cast("int | None", built.model.classes)
    if known is None:
        return [ANY]
    return names_of(built.class_names, known)


def _choose(text: str | None, names: Sequence[str], trained: int) -> list[int]:
    """The numbers of the classes in `--classes`; by default those that the model was trained on."""
    if text is None:
        return list(range(trained))
    chosen = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            chosen.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            chosen.append(int(word))
        else:
            few = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
            near = None if word.isdecimal() else did_you_mean(word, names)  # 1 is no likely typo of 11
            hint = near or f"it has {few}"
            raise UsageError(f"the model has no class '{word}'", where="--classes", hint=hint)
    return chosen


def _schedule(recipe: Recipe) -> NoiseSchedule:
    """The noise schedule that the model was trained with."""
    section = recipe.section(DiffusionSection)
    return NoiseSchedule(section.steps, section.beta_start, section.beta_end)
