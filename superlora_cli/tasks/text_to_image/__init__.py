"""Text to image: the denoiser of a pipeline learns images with captions. Only this task needs transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.tasks.task import Card, TaskKind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe, Section
    from superlora_cli.tasks.images import ImageTask


class TextToImageKind(TaskKind):
    """A denoiser learns to see images in noise, given their captions."""

    data_keys = ("caption",)
    augments = False
    smooths = False
    free = ("offload", "validation_prompts")
    card = Card('generate {place} --prompt "..." --out images', "merged  # a pipeline, for diffusers")
    generates = "prompts"
    previews = "captioned"
    has_classes = False
    rate_of_any_scale = False  # with the small weights of large pipelines, a rate of 0.03 ruins an adapter of scale 1

    def section(self) -> type[Section]:
        from superlora_cli.tasks.text_to_image.section import TextToImageSection

        return TextToImageSection

    def at_work(self, recipe: Recipe) -> type[ImageTask]:
        from superlora_cli.tasks.text_to_image.task import TextToImage

        return TextToImage
