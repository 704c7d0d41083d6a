"""A training step of `superlora train` on a text-to-image pipeline, against a plain loop of diffusers and PEFT.

    python benchmarks/text_to_image_step.py --threads 2

Both train LoRA of the same rank on q, k, v and o of the shipped pipeline's U-Net, from latents and captions that were
encoded before. The plain loop (`plain_pipeline.py`) finds them in two tensors in memory. Ours is all that happens from
one step to the next: gathering the batch from the cache, all the checks, every tenth step's log.

The two take turns step by step in one process; ratios are of ten steps each, with their median and quartiles.
"""

from __future__ import annotations

import torch
from plain_pipeline import Plain
from timing import Run, Times
from turns import compare, measured

from superlora_cli.models.pipelines import build_pipeline
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.tasks.text_to_image.task import TextToImage

GOAL, PLAIN = 1.05, "diffusers and PEFT"
MODEL, RANK, LR = "glyphs_text", 4, 1e-3


def plain(task: TextToImage) -> dict[str, Run]:
    """The plain loop on what the task sees."""
    base, train = build_pipeline(ModelSection(name=MODEL)), task.recipe.train
    everything = task.batch(task.seen["train"])
    latents = everything.latents
    words = task.denoising.conditioning(everything.captions, everything.size)["encoder_hidden_states"]
    loop = Plain(base.model, base.scheduler, rank=RANK, lr=LR, steps=train.length)

    def step() -> None:
        chosen = torch.randint(len(latents), (train.batch_size,))
        loop.step(latents[chosen], words[chosen])

    return {PLAIN: step}


def measure(steps: int, batch: int, overrides: list[str]) -> Times:
    """Seconds of every `CHUNK` steps of both."""
    recipe = recipe_from_dict(
        {
            "task": "text-to-image",
            "model": {"name": MODEL},
            "data": {"name": "digits"},
            "adapter": {"method": "lora", "rank": RANK, "targets": ["q", "k", "v", "o"]},
            "train": {"steps": steps, "batch_size": batch, "optimizer": {"lr": LR}},
        },
        "the benchmark",
        overrides,
    )
    return measured(recipe, plain)


if __name__ == "__main__":
    compare(__doc__, measure, other=PLAIN, goal=GOAL, unit="images")
