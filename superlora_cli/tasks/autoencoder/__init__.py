"""The autoencoder of a text-to-image pipeline learns to reproduce images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.tasks.task import Card, TaskKind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe, Section
    from superlora_cli.tasks.images import ImageTask


class AutoencoderKind(TaskKind):
    """An autoencoder reproduces images from few numbers."""

    data_keys = ("caption",)
    augments = False
    smooths = False
    card = Card(merged="merged  # a pipeline, for diffusers")
    previews = None
    has_classes = False

    def section(self) -> type[Section]:
        from superlora_cli.tasks.autoencoder.section import AutoencoderSection

        return AutoencoderSection

    def at_work(self, recipe: Recipe) -> type[ImageTask]:
        from superlora_cli.tasks.autoencoder.task import Autoencoder

        return Autoencoder
