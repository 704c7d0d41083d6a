"""The recipe section of the task `text-to-image`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from superlora_cli.recipe.schema import Section


class Prior(Section):
    """Images of what the model knows already and is to keep, such as dogs in general beside one dog."""

    images: str = Field(min_length=1, description="A folder of images, as `data.name`.")
    caption: str | None = Field(None, description="Template of their captions, as `data.caption`.")
    weight: float = Field(1.0, gt=0, description="Weight of their loss; that of the images of `data` is 1.")


class TextToImageSection(Section):
    """Sizes, captions and noise of the task `text-to-image`."""

    buckets: bool = Field(
        True,
        description="Crop images to the nearest of several aspect ratios, all of about `data.image_size`² pixels; "
        "`false`: to squares.",
    )
    repeats: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description='How often images are seen in an epoch, by patterns of file names: `{"dogs/*": 10}`; else once.',
    )
    prior: Prior | None = Field(
        None,
        description="As many other images in every batch, with a loss of their own (DreamBooth; Ruiz et al., 2023).",
    )
    flip: bool | None = Field(None, description="Show an image mirrored half of the times.")
    shuffle_captions: int | None = Field(
        None,
        ge=0,
        description="Show the parts of a caption between commas in another order each time, one of eight, but for so "
        "many at its start.",
    )
    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="Fraction of images trained with an empty caption, for classifier-free guidance."
    )
    times: Literal["uniform", "logit-normal"] | None = Field(
        None,
        description="How the share of noise is drawn; default: `uniform` for models that predict noise, `logit-normal` "
        "(more often around the middle) for flows.",
    )
    shift: float | None = Field(
        None,
        gt=0,
        description="Move the share of noise u up, to s·u / (1 + (s − 1)·u); default: as the scheduler does.",
    )
    min_snr: float | None = Field(
        None, gt=0, description="γ of Min-SNR weights of the loss (Hang et al., 2023), 5 is usual; not for flows."
    )
    noise_offset: float = Field(0.0, ge=0, description="Noise added to a whole channel of latents, for dark images.")
    validation_prompts: list[str] = Field(
        [],
        description="Prompts that an image is made of at every evaluation, for `pictures/` in the run folder, trackers "
        "and reports.",
    )
    offload: bool = Field(
        False,
        description="Keep the pipeline's parts on the GPU only while they work, when captions and images are encoded, "
        "and when images are generated; slower.",
    )
    guidance: float = Field(
        1.0, ge=0, description="Guidance in training, for models that take it as an input, such as FLUX.1-dev."
    )
