"""Compare generated images, from a folder or from a run, with real ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from superlora_cli.commands.generate import recipe_of_source
from superlora_cli.commands.generators import generator_of
from superlora_cli.errors import UsageError
from superlora_cli.files import write_json
from superlora_cli.generation.extractors import Extractor, load_extractor
from superlora_cli.generation.features import extract
from superlora_cli.generation.image_sets import ImageSet, in_words, parse_reference, read_images, read_split
from superlora_cli.generation.metrics import Knobs, class_accuracy, notes
from superlora_cli.generation.metrics import measure as measure_features
from superlora_cli.generation.similarity import clip_similarity, dino_similarity, load_judge
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import DataSection, Recipe

STANDARD = Knobs()
NONE = "none"  # in place of an extractor: only similarities are measured
SAMPLES = "samples"  # in a run folder: the images that were measured
KEYS = ("data.", "eval.batch_size", "train.device")  # recipe keys that apply without a model


def measure_folder(
    images: Path,
    against: str,
    overrides: Sequence[str] = (),
    *,
    extractor: str = "inception",
    weights: Path | None = None,
    dino: str | None = None,
    clip: str | None = None,
) -> dict[str, Any]:
    """`measure`, with arguments as the command line gives them.

    Args:
        against: `digits:test`, `torch/svhn:train`, `FOLDER:test` (class folders), or a folder of images.
        overrides: KEY=VALUE on the keys of a recipe's `data` section, `eval.batch_size` and `train.device`.
    """
    for text in overrides:
        if not text.startswith(KEYS):
            hint = "keys of data, eval.batch_size and train.device"
            raise UsageError("does not apply to a folder of images", where=text, hint=f"only {hint} do")
    parsed = parse_reference(against)
    plain = {
        "task": "diffusion",
        "model": {"name": "none"},
        "data": {"name": "none" if isinstance(parsed, Path) else parsed[0]},
        "train": {"steps": 1, "optimizer": {"lr": 0.0}},
        "eval": {"batch_size": 64},
    }
    recipe = recipe_from_dict(plain, "eval", overrides)
    return measure(
        images,
        parsed if isinstance(parsed, Path) else (recipe.data, parsed[1]),
        extractor=extractor,
        weights=weights,
        dino=dino,
        clip=clip,
        batch_size=recipe.eval.batch_size,
        device=recipe.train.device,
    )


def measure_run(
    source: str,
    against: str,
    console: Console,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    force: bool = False,
    extractor: str = "inception",
    weights: Path | None = None,
    dino: str | None = None,
    clip: str | None = None,
    allow_mismatch: bool = False,
    **sampling: Any,
) -> dict[str, Any]:
    """Generate images from a run, an adapter or a shipped base, and `measure` them.

    Images that were already generated with the same settings are reused. Those of text-to-image are made from the
    prompts in turn, by default from the captions of the test images.

    Args:
        against: as for `measure_folder`; the run's own data set is taken from its recipe.
        overrides: KEY=VALUE on the run's recipe.
        out: folder for the images; default: `samples` in a run folder; otherwise they are not saved.
        force: replace generated images in `out`.
        sampling: num, steps, guidance, seed, batch_size; classes, sampler, as for `commands.generate.generate`;
            prompts, prompts_file, negative, as for `commands.generate_prompted.generate_prompted`.

    Returns:
        as `measure`, and `generated`: what `generate` returns.
    """
    parsed = parse_reference(against)
    recipe = recipe_of_source(source, overrides)
    by = generator_of(recipe.task)
    if by.to_measure is None:
        raise UsageError(
            f"the task {recipe.task} generates no images", where=source, hint="superlora eval without --against"
        )
    _network(extractor, weights, dino, clip)  # fails before images are generated if anything is missing
    for name, where in ((dino, "--dino"), (clip, "--clip")):
        if name:
            load_judge(name, where)
    real = parsed if isinstance(parsed, Path) else (_section(recipe, parsed[0]), parsed[1])
    with _place(Path(source), out) as (folder, ours):
        how = {"force": ours or force, "reuse": True, "allow_mismatch": allow_mismatch, **sampling}
        made = by.generate(source, folder, console, overrides, **by.to_measure, **how)
        found = measure(
            folder,
            real,
            extractor=extractor,
            weights=weights,
            dino=dino,
            clip=clip,
            batch_size=recipe.eval.batch_size,
            device=recipe.train.device,
        )
        if out is None and not Path(source).is_dir():  # the folder was temporary
            made = {key: value for key, value in made.items() if key not in ("images", "grid")}
        found |= {"task": recipe.task, "images": source, "generated": made}
        write_json(folder / "metrics.json", found)
    return found


@contextmanager
def _place(source: Path, out: Path | None) -> Iterator[tuple[Path, bool]]:
    """Where the images go, and whether we may clear that folder."""
    if out is not None:
        yield out, False
    elif source.is_dir():
        yield source / SAMPLES, True
    else:
        with tempfile.TemporaryDirectory(prefix="superlora-") as folder:
            yield Path(folder), True


def _section(recipe: Recipe, name: str) -> DataSection:
    """The data section of a reference: the run's own, with its root and other settings, if the name is the same."""
    return recipe.data if recipe.data.name == name else DataSection(name=name, root=recipe.data.root)


def measure(
    images: Path,
    against: tuple[DataSection, str] | Path,
    *,
    extractor: str = "inception",
    weights: Path | None = None,
    dino: str | None = None,
    clip: str | None = None,
    batch_size: int = 64,
    device: str = "auto",
) -> dict[str, Any]:
    """The metrics of a folder of generated images.

    Args:
        images: the folder; file names or its manifest give the intended class of each image.
        against: data set and split, or a folder of real images of the same size.
        extractor: `inception`, `digits`, or `none` where only `dino` and `clip` are measured.
        weights: file of Inception's weights.
        dino, clip: models of `generation.similarity`; None: without that metric.

    Returns:
        task, metrics, n (of generated images), images, reference (name, n), settings (everything the numbers depend
        on: extractor, weights, layers, k, subset size, seed …, digests of the images), notes.

    Raises:
        UsageError: images, data or weights are missing or do not fit.
    """
    made = read_images(images)
    network = _network(extractor, weights, dino, clip)
    real = _reference(against, made)
    metrics: dict[str, float | None] = {}
    by: dict[str, Any] = {"extractor": NONE}
    used: dict[str, Any] = {}
    said: list[str] = []
    if network is None:
        digests = made.digest(), real.digest()
    else:
        generated = extract(made, network, batch_size=batch_size, device=device)
        reference = extract(real, network, batch_size=batch_size, device=device)
        metrics, used = measure_features(generated, reference, STANDARD)
        for name, features, shown in (
            ("class_accuracy", generated, made),
            ("class_accuracy_reference", reference, real),
        ):
            asked = network.asked(shown.prompts) if shown.prompts else shown.classes
            if asked is not None and network.classes:
                metrics[name] = class_accuracy(features.logits, asked, network.classes)
        layers = [network.logits, network.features]
        by = {"extractor": network.name, "weights": network.weights, "layers": layers}
        digests = generated.digest, reference.digest
        said = notes(generated, reference, used, STANDARD)
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if dino:
        metrics["dino_similarity"] = dino_similarity(dino, made, real, place)
    if clip:
        metrics["clip_similarity"] = clip_similarity(clip, made, place)
    settings = {
        **by,
        **{name: model for name, model in (("dino", dino), ("clip", clip)) if model},
        "images_sha256": digests[0],
        "reference_sha256": digests[1],
        **used,
    }
    return {
        "task": "diffusion",
        "metrics": metrics,
        "n": len(made),
        "images": str(images),
        "reference": {"name": real.name, "n": len(real)},
        "settings": settings,
        "notes": said,
    }


def _network(extractor: str, weights: Path | None, dino: str | None, clip: str | None) -> Extractor | None:
    """The extractor, if there is to be one.

    Raises:
        UsageError: it is unknown, its weights are missing, or there is nothing to measure without it.
    """
    if extractor != NONE:
        return load_extractor(extractor, weights)
    if weights is not None:
        raise UsageError("there is no extractor", where="--weights", hint="leave it out, or --extractor inception")
    if not (dino or clip):
        raise UsageError("measures nothing", where="--extractor none", hint="add --dino MODEL or --clip MODEL")
    return None


def _reference(against: tuple[DataSection, str] | Path, made: ImageSet) -> ImageSet:
    """The real images, at the size of the generated ones; of images made from prompts, as training sees them.

    Raises:
        UsageError: the folder has images of another size.
    """
    size = made.size
    if not isinstance(against, Path):
        return read_split(*against, size)
    real = read_images(against)
    if made.prompts is not None:
        return replace(real, side=size)
    if real.size != size:
        message = f"images of {in_words(real.size)} pixels, but those in {made.name} have {in_words(size)}"
        raise UsageError(message, where=real.name, hint="images of the same size")
    return real
