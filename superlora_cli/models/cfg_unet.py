"""The diffusion base: a class-conditional U-Net with self-attention (A.2, Fig. 12).

Shapes: B images, C channels, H × W pixels. Module names are those of `descriptions.cfg_unet`; the full size has
10,409,357 parameters and 21 attention modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LABEL_WIDTH = 10  # of the class embedding


class ConditionalUNet(nn.Module):
    """Predicts the noise ε in an image, given the time step and a class.

    Each level has `blocks` residual blocks on the way down and one more on the way up, each followed by attention; in
    the middle are one block with attention and one without. Every layer on the way down has a skip connection to one
    on the way up.

    Args:
        channels: channels of the first level.
        multipliers: channels of each level, as multiples of that.
        blocks: residual blocks per level on the way down.
        image_size: S, the image size it is made for; it works for any multiple of 2^(levels − 1).
        classes: number of classes, without the null class.
        groups: groups of the GroupNorms.
        dropout: dropout probability in the residual blocks.

    Raises:
        ValueError: the sizes are inconsistent.
    """

    def __init__(
        self,
        *,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        image_size: int = 32,
        classes: int = 10,
        groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_size, self.classes, self.multiple = image_size, classes, 2 ** (len(multipliers) - 1)
        if min(channels, *multipliers, blocks, image_size, classes, groups) < 1:
            raise ValueError("sizes must be at least 1")
        if image_size % self.multiple:
            raise ValueError(f"{len(multipliers)} levels cannot halve images of {image_size} pixels evenly")
        width = 4 * channels  # of the embeddings of time and class
        self.label = LabelEmbedding(classes, width)
        self.time = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)

        def block(inputs: int, outputs: int, *, attention: bool = True) -> Block:
            return Block(inputs, outputs, width, groups, dropout, attention=attention)

        now, skips = channels, [channels]
        self.down = nn.ModuleList()
        widths = [channels * multiplier for multiplier in multipliers]
        for level, out in enumerate(widths):
            layers = nn.ModuleList(block(now if index == 0 else out, out) for index in range(blocks))
            now = out
            if level < len(widths) - 1:
                layers.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
            skips += [now] * len(layers)
            self.down.append(layers)
        self.middle = nn.ModuleList([block(now, now), block(now, now, attention=False)])
        self.up = nn.ModuleList()
        for level, out in enumerate(reversed(widths)):
            layers = nn.ModuleList()
            for _ in range(blocks + 1):
                layers.append(block(now + skips.pop(), out))
                now = out
            if level < len(widths) - 1:
                layers.append(Doubling(now, now, 3, padding=1))
            self.up.append(layers)
        self.norm_out = nn.GroupNorm(groups, now)
        self.conv_out = nn.Conv2d(now, 3, 3, padding=1)
        self.grad_checkpointing = False
        _keep_lengths(self)
        self.to(memory_format=torch.channels_last)  # a third faster, on a CPU too

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether to recompute the blocks' activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    def forward(self, images: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        """Predict the noise in `images`.

        Args:
            images: (B, 3, S, S), noisy, around [−1, 1].
            steps: (B,) integers, 0 the least noisy.
            labels: (B,) int64: 0 for no class (null), c + 1 for class c.

        Returns:
            (B, 3, S, S).
        """
        first = self.time[0]
        assert isinstance(first, nn.Linear)
        time = self.time(sinusoids(steps, first.in_features).to(first.weight.dtype))  # (B, 4C)
        label = self.label(labels)  # (B, 4C)
        x = self.conv_in(images)
        skips = [x]
        for layer in _flat(self.down):
            x = self._run(layer, x, time, label)
            skips.append(x)
        for layer in self.middle:
            x = self._run(layer, x, time, label)
        for layer in _flat(self.up):
            joined = torch.cat([x, skips.pop()], dim=1) if isinstance(layer, Block) else x
            x = self._run(layer, joined, time, label)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result

    def _run(self, layer: nn.Module, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        inputs = (x, time, label) if isinstance(layer, Block) else (x,)
        if self.grad_checkpointing and isinstance(layer, Block) and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
            return recomputed
        result: Tensor = layer(*inputs)
        return result


class Block(nn.Module):
    """GN–SiLU–conv, plus time, plus class, GN–SiLU–dropout–conv, residual; then attention, if wanted."""

    def __init__(
        self, inputs: int, outputs: int, width: int, groups: int, dropout: float, *, attention: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(width, outputs)
        self.label = nn.Linear(width, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attn = Attention(outputs, groups) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, 4C), (B, 4C) → (B, outputs, H, W)."""
        embedded = self.time(functional.silu(time)) + self.label(functional.silu(label))  # (B, outputs)
        inner = self.conv1(functional.silu(self.norm1(x))) + embedded[:, :, None, None]
        inner = self.conv2(self.dropout(functional.silu(self.norm2(inner))))
        result: Tensor = self.attn(self.skip(x) + inner)
        return result


class Attention(nn.Module):
    """Self-attention over pixels, one head, scale C^-½, residual; q, k, v, proj are 1×1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.q, self.k, self.v, self.proj = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))  # (B, 1, HW, C)
        mixed = functional.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, HW, C)
        result: Tensor = x + self.proj(mixed.mT.reshape(x.shape))
        return result


class LabelEmbedding(nn.Module):
    """A class (label c + 1) or none (label 0) as a vector: (B,) int64 → (B, width)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, LABEL_WIDTH)
        self.encode = nn.Sequential(nn.Linear(LABEL_WIDTH, LABEL_WIDTH), nn.SiLU(), nn.Linear(LABEL_WIDTH, LABEL_WIDTH))
        self.mlp = nn.Sequential(nn.Linear(LABEL_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) → (B, width)."""
        result: Tensor = self.mlp(self.encode(self.embedding(labels)))
        return result


class Doubling(nn.Conv2d):
    """Nearest-neighbour upsampling by 2, then a convolution: (B, C, H, W) → (B, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W)."""
        return super().forward(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """Sines and cosines of `steps` at width/2 frequencies from 1 down to nearly 1/10,000: (B,) → (B, width) float32.

    >>> sinusoids(torch.tensor([0, 7]), 4).shape
    torch.Size([2, 4])
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=steps.device) * (-math.log(10_000) / half))
    angles = steps[:, None].float() * frequencies  # (B, width/2)
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def _keep_lengths(model: nn.Module) -> None:
    """Initialise the linear layers, which all carry time or class, such that vectors keep their length.

    torch's default keeps a third of the variance per layer, and a class passes through five of them: after 2,400
    steps it still had next to no effect.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def _flat(levels: nn.ModuleList) -> list[nn.Module]:
    return [layer for level in levels for layer in level]  # type: ignore[attr-defined]
