"""The recipe section of the task `autoencoder`."""

from __future__ import annotations

from pydantic import Field

from superlora_cli.recipe.schema import Section


class AutoencoderSection(Section):
    """The loss of the task `autoencoder`: squared errors of the pixels, and two more terms."""

    l1: float = Field(0.1, ge=0, description="Weight of the absolute errors of the pixels.")
    kl: float = Field(
        1e-4, ge=0, description="Weight of the divergence of the latents from unit normal ones, per number of them."
    )
