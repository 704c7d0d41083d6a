"""A loop as one writes it with diffusers and PEFT: LoRA on the U-Net of a Stable Diffusion pipeline.

As in diffusers' example `train_text_to_image_lora.py`, with latents and words encoded beforehand, and no Accelerate.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Plain:
    """The loop and what it trains.

    Args:
        unet: is frozen and gets the adapter.
        scheduler: the pipeline's.
        rank: of LoRA.
        steps: of the schedule of the learning rate.
    """

    def __init__(self, unet: Any, scheduler: Any, *, rank: int, lr: float, steps: int) -> None:
        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
        self.unet = unet.train()
        self.noising = DDPMScheduler.from_config(scheduler.config)
        self.parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=lr, total_steps=steps + 1)

    def loss(self, latents: Tensor, words: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The mean squared error of the noise that the U-Net predicts."""
        noisy = self.noising.add_noise(latents, noise, times)
        predicted = self.unet(noisy, times, encoder_hidden_states=words, return_dict=False)[0]
        return functional.mse_loss(predicted.float(), noise.float(), reduction="mean")

    def step(self, latents: Tensor, words: Tensor) -> None:
        """One step of the optimizer on a batch (B, C, h, w) with its encoded captions (B, tokens, width)."""
        noise = torch.randn_like(latents)
        times = torch.randint(0, self.noising.config.num_train_timesteps, (len(latents),))
        self.loss(latents, words, noise, times).backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
