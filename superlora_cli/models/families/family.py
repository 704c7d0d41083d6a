"""What training must know of a text-to-image pipeline, so that its denoiser is called just as the pipeline calls it.

A pipeline says itself how it calls its denoiser: it is run with a prompt until it does, and the arguments are kept
(`conditions`). Training replaces two of them, the noisy latents and the time. What remains is a family's own: how
images become latents, what the time is called and how it is scaled, what the denoiser predicts.

Shapes: B images of H × W pixels, whose latents are (B, C, h, w) or, packed, (B, h·w/4, 4·C).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from superlora_cli.models.families.naming import Naming
from superlora_cli.models.families.noise import Diffusion, Flow

Conditions = dict[str, Any]  # keyword arguments of a denoiser: tensors, dicts, lists (of images), plain values
OF_ANY_SIZE: Mapping[str, Any] = {"use_resolution_binning": False}  # images of just the size that is asked for


class Family:
    """A family of pipelines; what is said here holds for most.

    Attributes:
        denoiser: the component that is adapted.
        encoders: the text encoders.
        noisy, time: its arguments that training replaces.
        shared: its arguments that have no dimension for the images of a batch.
        noise: how images are noised, and what is predicted.
        autoencodes: whether its autoencoder can be trained, as a plain one for single images.
        takes_negative: whether its pipeline takes a negative prompt.
        guided: whether guidance is an argument of the denoiser, not a second call.
        unguided: the value of the pipeline's `guidance_scale` that calls the denoiser once.
        call: further arguments of every call of the pipeline.
        naming: how other programs name its modules.
    """

    denoiser: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    noisy: ClassVar[str] = "hidden_states"
    time: ClassVar[str] = "timestep"
    shared: ClassVar[tuple[str, ...]] = ()
    noise: ClassVar[type[Diffusion] | type[Flow]] = Flow
    autoencodes: ClassVar[bool] = True
    takes_negative: ClassVar[bool] = True
    guided: ClassVar[bool] = False
    unguided: ClassVar[float] = 1.0
    call: ClassVar[Mapping[str, Any]] = {}
    naming: ClassVar[Naming] = Naming("transformer.")

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that such a pipeline has."""
        tokenizers = (name.replace("text_encoder", "tokenizer") for name in self.encoders)
        return (self.denoiser, "vae", "scheduler", *self.encoders, *tokenizers)

    def scale(self, vae: Mapping[str, Any]) -> int:
        """Pixels per latent pixel, from the configuration of the autoencoder."""
        return int(2 ** (len(vae["block_out_channels"]) - 1))

    def multiple(self, denoiser: Any) -> int:
        """Width and height of latents must be multiples of this."""
        return 2

    def latents(self, vae: Any, images: Tensor) -> Tensor:
        """What the denoiser sees of images (B, 3, H, W) in [−1, 1] without noise: the mean of their distribution."""
        plain = vae.encode(images).latent_dist.mode()
        return (plain - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    def times(self, times: Tensor) -> Tensor:
        """The scheduler's times (B,) as the denoiser takes them."""
        return times

    def tokens(self, latents: Tensor) -> int:
        """The length of the sequence that an image is to the denoiser, on which a scheduler's shift may depend."""
        return latents.shape[-1] * latents.shape[-2] // 4

    def example(self, denoiser: Any, size: tuple[int, int], batch: int) -> tuple[tuple[int, ...], Conditions]:
        """The shape of the latents of images of `size` (width, height) in latent pixels, and conditions without values,
        on torch's default device, for an estimate of memory."""
        raise NotImplementedError

    def predict(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """The prediction that the pipeline would give to its scheduler, in the shape of the latents.

        Args:
            times: (B,), in the scheduler's unit.
        """
        found: Tensor = denoiser(**{self.noisy: noisy, self.time: self.times(times), **conditions})[0]
        return found

    def conditions(
        self, pipeline: Any, prompts: Sequence[str], size: tuple[int, int], guidance: float = 1.0, **more: Any
    ) -> Conditions:
        """The arguments with which the pipeline calls its denoiser for these prompts and this size (width, height), but
        for the noisy latents and the time.

        Args:
            guidance: for a denoiser that takes it; 1 is none.
            more: further arguments of the pipeline.
        """
        call = recorded(
            pipeline,
            getattr(pipeline, self.denoiser),
            prompt=list(prompts),
            width=size[0],
            height=size[1],
            guidance_scale=guidance if self.guided else self.unguided,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(0),
            **self.call,
            **more,
        )
        return {name: value for name, value in call.items() if name not in (self.noisy, self.time)}

    def dropped(self, pipeline: Any, size: tuple[int, int], guidance: float = 1.0) -> Conditions:
        """The conditions of an image without a caption, B = 1: those that guidance leads away from by default."""
        return self.conditions(pipeline, [""], size, guidance)

    def steered(self, guidance: float | None, negative: str | None) -> dict[str, Any]:
        """Arguments of the pipeline for guidance and a negative prompt; None leaves them as they are by default."""
        given = {"guidance_scale": guidance, "negative_prompt": negative}
        return {name: value for name, value in given.items() if value is not None}

    def together(self, samples: Sequence[Conditions]) -> Conditions:
        """The conditions of a batch, from those of its images, B = 1 each."""
        return _together(samples, self.shared)


class _CalledError(Exception):
    """Carries the arguments of a call out of it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


def recorded(pipeline: Any, denoiser: nn.Module, **call: Any) -> dict[str, Any]:
    """The arguments, by name, with which `pipeline(**call)` calls its denoiser first; it ends there.

    They are differentiable in the text encoders where gradients are enabled: a pipeline itself disables them.
    """
    signature = inspect.signature(denoiser.forward)

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _CalledError(dict(signature.bind(*args, **kwargs).arguments))

    hook = denoiser.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)  # before an adapter sees a call
    pipeline.set_progress_bar_config(disable=True)
    try:
        inspect.unwrap(type(pipeline).__call__)(pipeline, **call)
    except _CalledError as found:
        return found.arguments
    finally:
        hook.remove()
    raise RuntimeError("the pipeline did not call its denoiser")


def _together(samples: Sequence[Mapping[str, Any]], shared: Sequence[str]) -> Conditions:
    def joined(name: str, values: Sequence[Any]) -> Any:
        if isinstance(values[0], Mapping):
            return _together(values, shared)
        if isinstance(values[0], list):
            return [part for value in values for part in value]
        return torch.cat(list(values)) if isinstance(values[0], Tensor) and name not in shared else values[0]

    return {name: joined(name, [sample[name] for sample in samples]) for name in samples[0]}
