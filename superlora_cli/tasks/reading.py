"""How the data of a recipe are read: what a run records about them, and its batches."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from superlora_cli.data.augment import mixing
from superlora_cli.data.batches import Batch, training_batches
from superlora_cli.data.holding_out import FEWEST
from superlora_cli.data.known import has_several_labels, is_embedded
from superlora_cli.data.splits import Splits, labels_of
from superlora_cli.data.stream import Share
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS

SPARES = f"a class needs {FEWEST} images to spare some; or add folders train, val and test"


def other_data(called: str) -> str:
    """What is doubtful about other data than those of training; `called` is what they are: images or texts."""
    return f"held-out {called} may have been trained on"


def settled(recipe: Recipe, rule: str | None = None) -> Recipe:
    """The recipe plus what a run records about its data: whether images have several labels, and how images are split.

    Args:
        rule: `data.split` if the recipe does not set it; default: that of its task.
    """
    data = recipe.data
    found: dict[str, Any] = {"multi_label": True} if has_several_labels(data) else {}
    if data.split is None and not is_embedded(data.name):
        found["split"] = rule or TASKS[recipe.task].split(recipe)
    return recipe.model_copy(update={"data": data.model_copy(update=found)})


def check_held_out(sizes: Mapping[str, int], recipe: Recipe) -> None:
    """Refuse to train without images to learn from, to choose the best step by, or to test it.

    Args:
        sizes: number of images by split.

    Raises:
        UsageError: such a split is empty.
    """
    for split in ("train", "test", recipe.eval.select):
        if not sizes[split]:
            raise empty(split, recipe)


def empty(split: str, recipe: Recipe) -> UsageError:
    """The error about an empty split."""
    if recipe.data.validation:
        hint = SPARES
    elif split == "validation":
        hint = "eval.select=test, a folder val, or data.validation=0.1"
    else:
        hint = "data.validation=0.1 holds images out; or add folders train, val and test"
    return UsageError(f"the {split} split is empty", where=f"data.validation={recipe.data.validation:g}", hint=hint)


def read_training(
    recipe: Recipe,
    splits: Splits,
    start: int,
    stop: int,
    *,
    outputs: int,
    process: tuple[int, int] = (0, 1),
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """The batches of steps `start` ... `stop` − 1 of the shuffled training split, as the recipe sets them.

    Args:
        outputs: number of outputs of a classifier.
        process: index of this process, and number of processes.
    """
    train, data = recipe.train, recipe.data
    return training_batches(
        splits.train,
        train.batch_size,
        seed=recipe.seed,
        start=start,
        stop=stop,
        workers=data.workers,
        pin=pin,
        keyed=splits.augmented,
        share=Share(train.accumulate, *process),
        classes=labels_of(splits.train) if data.balance else None,
        mix=mixing(data, splits.classes if has_several_labels(data) else outputs),
    )
