"""Image classification: cross-entropy, accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from superlora_cli.adapter import store
from superlora_cli.data.batches import Batch, evaluation_batches, training_batches
from superlora_cli.data.splits import Look, Splits, load_splits
from superlora_cli.errors import UsageError
from superlora_cli.files import safetensors_bytes
from superlora_cli.tasks.build import ADAPTER_FILE, MODEL_FILE, Built

DATA_SEED = 0  # of held-out parts and rendered images: runs with different seeds see the same data


class Classification:
    """The task as the training loop sees it, and its evaluation."""

    def __init__(self, built: Built, accelerator: Accelerator) -> None:
        self.built, self.recipe, self.accelerator = built, built.recipe, accelerator
        self.model = built.model.to(accelerator.device)
        base = built.base
        look = Look(base.image_size, base.mean, base.std)
        self.splits: Splits = load_splits(self.recipe.data, look, seed=DATA_SEED)
        outputs: Any = self.model.num_classes
        if self.splits.classes > outputs:
            hint = "model.head: new, or rows of the pretrained one for every class"
            message = f"{self.splits.classes} classes in '{self.recipe.data.name}', {outputs} outputs of the model"
            raise UsageError(message, where="model.head", hint=hint)
        if self.recipe.train.gradient_checkpointing:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]

    def one_step(self) -> AbstractContextManager[None]:
        """ΔW is built once per optimizer step."""
        return self.built.adapter.one_step() if self.built.adapter else nullcontext()

    def trained(self) -> dict[str, nn.Parameter]:
        """The factors, or every parameter of the base."""
        if self.built.adapter is None:
            return dict(self.model.named_parameters())
        return dict(self.built.adapter.factors.items())

    def head(self) -> dict[str, nn.Parameter]:
        """The new classifier beside an adapter."""
        return self.built.head

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` ... `stop` − 1 of the shuffled training split."""
        train, data = self.recipe.train, self.recipe.data
        return training_batches(
            self.splits.train,
            train.batch_size,
            seed=self.recipe.seed,
            start=start,
            stop=stop,
            workers=data.workers,
            pin=self.accelerator.device.type == "cuda",
            keyed=self.splits.augmented,
        )

    def images_in(self, batch: Batch) -> int:
        """B."""
        return len(batch[1])

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        images, labels = self._to_device(batch)
        return functional.cross_entropy(
            self.model(images).float(), labels, label_smoothing=self.recipe.train.label_smoothing
        )

    def score(self) -> dict[str, float]:
        """Accuracy and loss on the split that selects."""
        return self.evaluate(self.recipe.eval.select)

    def better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Higher accuracy; between equal ones, lower loss."""
        return (new["accuracy"], -new["loss"]) > (old["accuracy"], -old["loss"])

    def evaluate(self, split: str) -> dict[str, float]:
        """Accuracy (a fraction) and mean cross-entropy on a whole split."""
        logits, labels = self.predict(split)
        return {
            "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
            "loss": functional.cross_entropy(logits, labels).item(),
        }

    @torch.no_grad()
    def predict(self, split: str) -> Batch:
        """Logits (n, classes) float32 and labels (n,) of a whole split, on the CPU.

        Raises:
            UsageError: the split has no image.
        """
        self.model.eval()
        images = self.splits.named(split)
        pin = self.accelerator.device.type == "cuda"
        found = []
        for batch in evaluation_batches(images, self.recipe.eval.batch_size, workers=self.recipe.data.workers, pin=pin):
            inputs, labels = self._to_device(batch)
            with self.accelerator.autocast():
                found.append((self.model(inputs).float().cpu(), labels.cpu()))
        if not found:
            raise UsageError(f"the {split} split is empty", where="data.validation", hint="hold some images out")
        return torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found])

    def exported(self, metrics: Mapping[str, Any]) -> dict[str, bytes]:
        """adapter.safetensors, or model.safetensors where the base itself is trained."""
        recipe, adapter = self.recipe, self.built.adapter
        if adapter is None:
            state = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
            metadata = {
                "format": "pt",
                "superlora.model_recipe": recipe.to_json(),
                "superlora.metrics": json.dumps(dict(metrics), sort_keys=True),
            }
            return {MODEL_FILE: safetensors_bytes(state, metadata)}
        assert recipe.adapter is not None
        sha256, dtype = self.built.base_digest
        stored = store.StoredAdapter(
            config=adapter.config,
            patterns=tuple(recipe.adapter.targets),
            targets_digest=store.digest_targets(adapter.targets),
            base={"name": recipe.model.name, "sha256": sha256, "dtype": dtype},
            recipe=recipe.to_dict(),
            metrics=metrics,
            factors=dict(adapter.factors.items()),
            head=self.head(),
        )
        return {ADAPTER_FILE: stored.to_bytes()}

    def _to_device(self, batch: Batch) -> Batch:
        device = self.accelerator.device
        return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
