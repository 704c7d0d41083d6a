"""A pipeline's autoencoder learns to reproduce images: without an adapter, or with one on its convolutions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.data.batches import Batch
from superlora_cli.data.captioned import CaptionedImages
from superlora_cli.data.images import cropped
from superlora_cli.data.splits import Splits
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks.autoencoder.section import AutoencoderSection
from superlora_cli.tasks.images import ImageTask
from superlora_cli.tasks.text_to_image.reading import read_captioned


class Autoencoder(ImageTask):
    """The task as the training loop sees it, and its evaluation."""

    measure = "loss"

    def read(self, recipe: Recipe) -> Splits:
        """Images of any kind that has captions, which are not looked at; the middle square of each."""
        data = recipe.data.model_copy(update={"caption": ""})
        found, side = read_captioned(recipe.model_copy(update={"data": data}), self.look.size), self.look.size

        def square(images: Any) -> CaptionedImages:
            assert isinstance(images, CaptionedImages)
            return images.seen_through(partial(cropped, size=(side, side)))

        return replace(found, train=square(found.train), validation=square(found.validation), test=square(found.test))

    def check_classes(self) -> None:
        """There are none."""

    @staticmethod
    def objective(model: nn.Module, recipe: Recipe, batch: Batch) -> Tensor:
        """Errors of the reproduced pixels, and the divergence of the latents (Rombach et al. 2022, appendix G).

        The noise of the latents is drawn on the CPU from torch's own generator, whose state is in every checkpoint.
        """
        settings, images = recipe.section(AutoencoderSection), batch[0]
        network: Any = model
        spread = network.encode(images.to(next(model.parameters()).dtype)).latent_dist
        noise = torch.randn(spread.mean.shape, device="meta" if images.is_meta else "cpu").to(spread.mean)
        seen = network.decode(spread.mean + spread.std * noise).sample.float()
        loss = functional.mse_loss(seen, images) + settings.l1 * functional.l1_loss(seen, images)
        return loss + settings.kl * spread.kl().mean() / spread.mean[0].numel()

    @property
    def guessing(self) -> float:
        """The loss of grey images, for pixels that are evenly spread over [−1, 1]."""
        return 1 / 3

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Mean squared error of the pixels in [−1, 1], through the middle of each image's latents."""
        found, network = [], self.model
        with self.built.kept():
            for images, _ in self.batches_of(split):
                with self.processes.autocast():
                    own = images.to(next(network.parameters()).dtype)
                    latents = network.encode(own).latent_dist.mode()  # type: ignore[operator]
                    seen = network.decode(latents).sample.float()  # type: ignore[operator]
                found.append(functional.mse_loss(seen, images, reduction="none").mean(dim=(1, 2, 3)))
        errors = self.processes.gather(torch.cat(found), len(self.splits.named(split)))
        self.check_outputs(errors[:, None])
        return {"loss": errors.double().mean().item()}
