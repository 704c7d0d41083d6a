"""A training step of `superlora train` on a language model, against PEFT's LoRA in the Trainer of transformers.

    python benchmarks/language_step.py --threads 2

Both train LoRA of the same rank on q and v of the shipped language model, on the same packed sequences. Ours is all
that happens from one step to the next: making the batch, all the checks, every tenth step's log. So is the Trainer's,
which is given sequences that are packed already.

The two take turns step by step in one process; ratios are of ten steps each, with their median and quartiles.
"""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from timing import CHUNK, Run, Times
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from turns import compare, measured

from superlora_cli.data.stream import Share
from superlora_cli.models.language import build_language
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.tasks.language.batches import stream
from superlora_cli.tasks.language.task import Language

GOAL, TRAINER = 1.05, "PEFT in the Trainer"
MODEL, RANK, LR, LENGTH = "sums_llama", 4, 1e-3, 128
IGNORED = -100


class Sequences(Dataset[Any]):
    """Packed sequences in the form that transformers' models take."""

    def __init__(self, task: Language, count: int) -> None:
        share = Share()
        batches = stream(task.encoded["train"], 1, seed=0, start=0, stop=count, share=share, room=LENGTH, pad=task.pad)
        self.rows = []
        for batch in batches:
            room = LENGTH - batch.ids.shape[1]
            labels = torch.full_like(batch.ids, IGNORED)
            labels.view(-1)[batch.at + 1] = batch.wanted
            padded = {
                "input_ids": (batch.ids, task.pad),
                "position_ids": (batch.positions, 0),
                "labels": (labels, IGNORED),
            }
            self.rows.append({name: torch.nn.functional.pad(own[0], (0, room), value=value)
                              for name, (own, value) in padded.items()})  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


class InTurns(TrainerCallback):
    """Holds a Trainer, which runs in a thread of its own, at the end of every step until it is asked for the next."""

    def __init__(self) -> None:
        self.asked, self.made = threading.Semaphore(0), threading.Semaphore(0)

    def on_train_begin(self, *args: Any, **given: Any) -> None:
        self.asked.acquire()

    def on_step_end(self, *args: Any, **given: Any) -> None:
        self.made.release()
        self.asked.acquire()

    def step(self) -> None:
        """Let it make one step."""
        self.asked.release()
        self.made.acquire()


def trainer(task: Language) -> dict[str, Run]:
    """The Trainer on what the task sees."""
    base, train = build_language(ModelSection(name=MODEL, head="frozen"), classes=None), task.recipe.train
    model = get_peft_model(base.model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"]))
    arguments = TrainingArguments(
        tempfile.mkdtemp(prefix="superlora-"), max_steps=train.length + 1, per_device_train_batch_size=train.batch_size,
        learning_rate=LR, weight_decay=0.0, max_grad_norm=0.0, logging_steps=CHUNK, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    turns = InTurns()
    other = Trainer(model, arguments, train_dataset=Sequences(task, 500), callbacks=[turns])

    def run() -> None:
        torch.set_num_threads(train.threads or torch.get_num_threads())
        other.train()

    threading.Thread(target=run, daemon=True).start()
    return {TRAINER: turns.step}


def measure(steps: int, batch: int, overrides: list[str]) -> Times:
    """Seconds of every `CHUNK` steps of both."""
    recipe = recipe_from_dict(
        {
            "task": "language",
            "model": {"name": MODEL},
            "data": {"name": "sums", "train_texts": 20_000, "eval_texts": 20},
            "language": {"length": LENGTH},
            "adapter": {"method": "lora", "rank": RANK, "targets": ["q", "v"]},
            "train": {"steps": steps, "batch_size": batch, "optimizer": {"lr": LR}},
        },
        "the benchmark",
        overrides,
    )
    return measured(recipe, trainer)


if __name__ == "__main__":
    compare(__doc__, measure, other=TRAINER, goal=GOAL, unit="sequences")
