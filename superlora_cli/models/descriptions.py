"""The layers of base models outside timm, from which the catalogue is generated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from superlora_cli.models.parts import Part


class Layer(NamedTuple):
    """A layer with parameters; `shape` is that of its weight, () if it is neither linear nor a convolution.

    `norm` names the parameters of a normalisation layer, which all have the same length.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    norm: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Part]:
        """Its bias, or all parameters of a normalisation layer, by name."""
        if self.norm:
            return {f"{self.name}.{own}": Part((self.params // len(self.norm),), True) for own in self.norm}
        has_bias = bool(self.shape) and self.params > math.prod(self.shape)
        return {f"{self.name}.bias": Part(self.shape[:1], False)} if has_bias else {}


def cfg_unet() -> Iterator[Layer]:
    """The diffusion base (A.2): 3×32×32, 64 channels × (1, 2, 2, 2), 10,409,357 parameters.

    Each level has two residual blocks down and three up, each followed by single-head attention.
    """
    widths = (64, 128, 128, 128)
    yield Layer("label.embedding", (), 11 * 10)
    yield _layer("label.encode.0", 10, 10)
    yield _layer("label.encode.2", 10, 10)
    yield _layer("label.mlp.0", 256, 10)
    yield _layer("label.mlp.2", 256, 256)
    yield _layer("time.0", 256, 64)
    yield _layer("time.2", 256, 256)
    yield _layer("conv_in", 64, 3, 3, 3)
    channels, skips = 64, [64]
    for level, width in enumerate(widths):
        for index in range(2):
            yield from _block(f"down.{level}.{index}", channels, width)
            channels = width
            skips.append(channels)
        if level < 3:
            yield _layer(f"down.{level}.2", channels, channels, 3, 3)
            skips.append(channels)
    yield from _block("middle.0", channels, channels)
    yield from _block("middle.1", channels, channels, attention=False)
    for level, width in enumerate(reversed(widths)):
        for index in range(3):
            yield from _block(f"up.{level}.{index}", channels + skips.pop(), width)
            channels = width
        if level < 3:
            yield _layer(f"up.{level}.3", channels, channels, 3, 3)
    yield _group_norm("norm_out", channels)
    yield _layer("conv_out", 3, channels, 3, 3)


def llama_7b() -> Iterator[Layer]:
    """A language model of the shape of Llama-7B, with the names of transformers, 6,738,415,616 parameters."""
    width, hidden = 4096, 11008
    shapes = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    shapes |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
    yield Layer("model.embed_tokens", (), 32000 * width)
    for index in range(32):
        for name, shape in shapes.items():
            yield Layer(f"model.layers.{index}.{name}", shape, math.prod(shape))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Layer(f"model.layers.{index}.{norm}", (), width, ("weight",))
    yield Layer("model.norm", (), width, ("weight",))
    yield Layer("lm_head", (32000, width), 32000 * width)


DENOISERS: dict[str, tuple[str, dict[str, Any]]] = {  # of text-to-image pipelines: diffusers' class, and its arguments
    "sd-1.5": ("UNet2DConditionModel", {"cross_attention_dim": 768}),
    "sdxl": (
        "UNet2DConditionModel",
        {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "sd3.5-medium": (
        "SD3Transformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
    ),
    "flux.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux.2-klein": (  # of 4 billion parameters
        "Flux2Transformer2DModel",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "z-image": ("ZImageTransformer2DModel", {}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "sana-1.6b": ("SanaTransformer2DModel", {}),
    "pixart-sigma": (
        "PixArtTransformer2DModel",
        {"sample_size": 128, "caption_channels": 4096, "use_additional_conditions": False},
    ),
}
REPOSITORIES = {  # whose denoiser has these shapes: of the hub → name above
    "diffusers:stable-diffusion-v1-5/stable-diffusion-v1-5": "sd-1.5",
    "diffusers:stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "diffusers:stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "diffusers:black-forest-labs/FLUX.1-dev": "flux.1-dev",
    "diffusers:black-forest-labs/FLUX.2-klein-base-4B": "flux.2-klein",
    "diffusers:Tongyi-MAI/Z-Image": "z-image",
    "diffusers:Qwen/Qwen-Image": "qwen-image",
}
DESCRIPTIONS: dict[str, Callable[[], Iterator[Layer]]] = {"cfg_unet": cfg_unet, "llama_7b": llama_7b}


def _layer(name: str, *shape: int) -> Layer:
    """A linear layer or convolution with bias."""
    return Layer(name, shape, math.prod(shape) + shape[0])


def _group_norm(name: str, channels: int) -> Layer:
    """A normalisation layer with weight and bias."""
    return Layer(name, (), 2 * channels, ("weight", "bias"))


def _block(name: str, inputs: int, outputs: int, *, attention: bool = True) -> Iterator[Layer]:
    """GN–SiLU–conv, plus time, plus label, GN–SiLU–conv, skip; then GN and 1×1 convolutions q, k, v, proj."""
    yield _group_norm(f"{name}.norm1", inputs)
    yield _layer(f"{name}.conv1", outputs, inputs, 3, 3)
    yield _layer(f"{name}.time", outputs, 256)
    yield _layer(f"{name}.label", outputs, 256)
    yield _group_norm(f"{name}.norm2", outputs)
    yield _layer(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield _layer(f"{name}.skip", outputs, inputs, 1, 1)
    if attention:
        yield _group_norm(f"{name}.attn.norm", outputs)
        yield from (_layer(f"{name}.attn.{part}", outputs, outputs, 1, 1) for part in ("q", "k", "v", "proj"))
