"""The recipe section of the task `diffusion`."""

from __future__ import annotations

from pydantic import Field

from superlora_cli.recipe.schema import Section


class DiffusionSection(Section):
    """The noise of the task `diffusion`."""

    steps: int = Field(1000, ge=2, description="Number of time steps T.")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="Variance β of the noise added by the first step.")
    beta_end: float = Field(0.02, gt=0, lt=1, description="The same of the last step; linear in between.")
    class_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Fraction of images trained without their class, as classifier-free guidance needs.",
    )
