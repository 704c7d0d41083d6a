"""The denoiser of a pipeline learns to see images in noise, given their captions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from superlora_cli.data.augment import set_aside
from superlora_cli.data.captioned import CaptionedImages
from superlora_cli.data.splits import SPLITS, Splits
from superlora_cli.data.stream import of_epochs, steps_of_epoch
from superlora_cli.errors import UsageError
from superlora_cli.generation.grid import titled_grid
from superlora_cli.models.families.family import Conditions
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.models.quantising import precision
from superlora_cli.opening.build import Built
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.draws import drawn, draws_per_image
from superlora_cli.tasks.images import ImageTask
from superlora_cli.tasks.text_to_image.batches import dealt, drawn_beside, epoch, repeated
from superlora_cli.tasks.text_to_image.cache import Cache
from superlora_cli.tasks.text_to_image.encoding import Encoded, Seen, Stored, fill, seen, seen_in
from superlora_cli.tasks.text_to_image.notes import notes_on
from superlora_cli.tasks.text_to_image.objective import EMPTY, Batch, Objective
from superlora_cli.tasks.text_to_image.painting import painted
from superlora_cli.tasks.text_to_image.reading import read_captioned, read_prior
from superlora_cli.tasks.text_to_image.section import TextToImageSection
from superlora_cli.tasks.text_to_image.sizes import Size
from superlora_cli.tasks.text_to_image.versions import drawn_versions, versions
from superlora_cli.training.processes import Processes

DRAWS = 256  # of noise and time, at least, on a split: for a stable mean


def base_of(built: Built) -> PipelineBase:
    """The pipeline that a model is the denoiser of."""
    assert isinstance(built.base, PipelineBase)
    return built.base


class TextToImage(ImageTask):
    """The task as the training loop sees it, and its evaluation.

    Attributes:
        seen: the images of every split, with their sizes and what is stored of them.
        versions: of every training image, one of which is drawn each time.
        epoch: those of an epoch, some of them several times.
        prior: further images for every batch, and `beside` those for batches of each size; {} without a prior.
    """

    measure = "loss"
    prior: CaptionedImages | None = None

    def __init__(self, built: Built, processes: Processes) -> None:
        base = base_of(built)
        self.settings = built.recipe.section(TextToImageSection)
        if self.settings.validation_prompts and built.recipe.train.shard_base:
            where, hint = "text-to-image.validation_prompts", "generate images after training"
            raise UsageError("a sharded base makes no images while it trains", where=where, hint=hint)
        self.cache = Cache(base.folder, base.family.denoiser, base.options)
        guidance = self.settings.guidance
        adapted = Encoded(base, processes.device, guidance) if base.encoders else Stored(self.cache, base, guidance)
        self.denoising = Objective(base, self.settings, adapted)
        super().__init__(built, processes)

    def read(self, recipe: Recipe) -> Splits:
        return read_captioned(recipe, self.look.size)

    def arrange(self) -> None:
        """Images get their sizes, an epoch its repeated ones, and every size its share of the prior."""
        names = self.images("train").names
        if found := read_prior(self.recipe, self.look.size):
            self.prior = found.train
            self.splits = replace(
                self.splits,
                notes=self.splits.notes + found.notes,
                unreadable=self.splits.unreadable + found.unreadable,
            )
        self.seen = {split: self._seen(split) for split in SPLITS}
        for pattern in self.settings.repeats:
            if not any(fnmatchcase(name, pattern) for name in names):
                where, hint = f"text-to-image.repeats.{pattern}", f"names are as {names[0]}"
                raise UsageError("matches no training image", where=where, hint=hint)
        more = notes_on(base_of(self.built), self.images("train"), self.seen["train"], self.settings.repeats)
        self.splits = replace(self.splits, notes=(*self.splits.notes, *more))
        self.versions = [
            versions(sample, flip=bool(self.settings.flip), shuffle=self.settings.shuffle_captions)
            for sample in self.seen["train"]
        ]
        self.epoch = repeated(self.seen["train"], names, self.settings.repeats)
        prior, sizes = self.prior, [sample.size for sample in self.epoch]
        shares = dealt(len(prior), sizes).items() if prior else ()
        self.beside = {size: [seen_in(prior, number, size) for number in own] for size, own in shares if prior}

    def steps_of_epoch(self) -> int:
        return steps_of_epoch(len(epoch(self.epoch, self.recipe.train.batch_size, 0, 0)), self.share)

    def _seen(self, split: str) -> list[Seen]:
        return seen(self.images(split), self.look.size, base_of(self.built).multiple, self.settings.buckets)

    def prepare(self) -> None:
        """What is missing in the cache is computed before training takes up memory."""
        parts = [(self.images(split), self.seen[split]) for split in SPLITS]
        parts += [(self.images("train"), own) for own in self.versions]
        parts += [(self.prior, samples) for samples in self.beside.values() if self.prior]
        guidance, offload = self.settings.guidance, self.settings.offload
        with self.processes.alone():
            fill(self.cache, base_of(self.built), parts, self.processes, guidance, offload=offload)
        self.processes.wait()

    def images(self, split: str) -> CaptionedImages:
        """The images of a split, with their captions."""
        found = self.splits.named(split)
        assert isinstance(found, CaptionedImages)
        return found

    def check_classes(self) -> None:
        """There are none."""

    @classmethod
    def rehearsal(cls, built: Built) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
        base, count = base_of(built), built.recipe.train.batch_size
        settings = built.recipe.section(TextToImageSection)
        settings = settings.model_copy(update={"caption_dropout": 0.0})  # a matter of values
        side, beside = base.image_size, count if settings.prior else 0
        latent = side // base.scale, side // base.scale

        def example(captions: Sequence[str], size: Size) -> Conditions:
            found = base.family.example(built.model, latent, len(captions))[1]
            own = precision(built.model)
            made: Conditions = tree_map_only(
                Tensor, lambda part: part.to(own) if part.is_floating_point() else part, found
            )
            return made

        def batch() -> Batch:
            shape, _ = base.family.example(built.model, latent, count + beside)
            return Batch(torch.empty(shape), [EMPTY] * (count + beside), (side, side), beside)

        objective = Objective(base, settings, example)
        return batch, lambda batch: objective.loss(built.model, batch, torch.device("cpu"))

    @property
    def guessing(self) -> float:
        """The loss of predicting zero where noise is predicted: its variance."""
        return 1.0

    def batches(self, start: int, stop: int) -> Generator[Any, None, None]:
        seed, share = self.recipe.seed, self.share
        batches = partial(epoch, self.epoch, self.recipe.train.batch_size, seed)
        steps = of_epochs(batches, self.steps_of_epoch(), share, start, stop)
        for place, samples in enumerate((samples for _, own in steps for samples in own), start * share.passes):
            known, place = self.beside.get(samples[0].size, []), place * share.processes + share.process
            drawn = drawn_beside(len(samples), len(known), seed=seed, place=place)
            own = drawn_versions([self.versions[sample.number] for sample in samples], seed=seed, place=place)
            yield self.batch([*own, *(known[number] for number in drawn)], len(drawn))

    def batch(self, samples: Sequence[Seen], beside: int = 0) -> Batch:
        """Images of one size, the last ones `beside` the others, with their stored latents."""
        latents = torch.cat([self.cache.get(sample.latents)["latents"] for sample in samples])
        return Batch(latents, [sample.caption for sample in samples], samples[0].size, beside)

    def amount(self, batch: Any) -> int:
        return len(batch.latents)

    def loss(self, batch: Any) -> Tensor:
        return self.denoising.loss(self.model, batch, self.processes.device)

    @cached_property
    def painter(self) -> Any:
        """The pipeline that makes images of the validation prompts, loaded when it is first needed."""
        return base_of(self.built).pipeline()

    def picture(self) -> bytes | None:
        """An image of each validation prompt, of the pipeline's own steps and guidance, with its prompt above it; every
        process makes its share of them."""
        prompts = self.settings.validation_prompts
        if not prompts:
            return None
        base, size = base_of(self.built), (self.look.size, self.look.size)
        self.in_training = False
        self.model.eval()
        own = [prompts[number] for number in self.processes.share(len(prompts))]
        with self.built.kept(), set_aside(), self.processes.autocast():
            pipeline, call = self.painter.to(self.processes.device), base.family.call
            where = "text-to-image.validation_prompts"
            images = [painted(pipeline, [prompt], [self.recipe.seed], size, where=where, **call) for prompt in own]
            base.set_down(pipeline)
        every = self.processes.gather(torch.cat(images).to(self.processes.device), len(prompts)).cpu()
        return titled_grid(every, prompts) if self.processes.is_main else None

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """The loss on a whole split, unweighted, always with the same noise and times, evenly spread over all times.

        So runs and settings can be compared on the same data, whatever the batch size.
        """
        samples, size = self.seen[split], self.recipe.eval.batch_size
        passes = draws_per_image(len(samples), DRAWS)
        own = self.processes.share(len(samples))
        self.in_training = False
        self.model.eval()
        totals = torch.zeros(len(own))
        by_size: dict[Size, list[tuple[int, int]]] = {}  # place in `own`, key of noise and time
        for place, number in enumerate(own):
            keys = [(place, passed * len(samples) + number) for passed in range(passes)]
            by_size.setdefault(samples[number].size, []).extend(keys)
        with self.built.kept(), self.processes.autocast():
            for draws in by_size.values():
                for start in range(0, len(draws), size):
                    places = [place for place, _ in draws[start : start + size]]
                    batch = self.batch([samples[own[place]] for place in places])
                    shares, noise = drawn([key for _, key in draws[start : start + size]], batch.latents)
                    times = self.denoising.noise.times(torch.tensor(shares))
                    words = self.denoising.conditioning(batch.captions, batch.size)
                    found = self.denoising.errors(self.model, batch.latents, noise, times, words, self.processes.device)
                    totals.index_add_(0, torch.tensor(places), found.cpu() / passes)
        errors = self.processes.gather(totals.to(self.processes.device), len(samples))
        self.check_outputs(errors[:, None])
        return {"loss": errors.double().mean().item()}
