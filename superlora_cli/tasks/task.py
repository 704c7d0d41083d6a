"""Everything that commands may ask about a task before it runs, on one page.

A task is one object in `tasks.TASKS`, by the name that `task:` has in a recipe. The work on a model and data is done by
a `Work`, which the training loop sees as `training.loop.Task`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from superlora_cli.recipe.schema import Recipe, Section
    from superlora_cli.tasks.work import Work


class Card(NamedTuple):
    """What the model card of a run says of its task.

    Attributes:
        use: the arguments of `superlora` that show what the model does; `{place}` stands for the run.
        merged: where `superlora merge` writes, and what reads that.
        tag: the hub's name of the task; None: its own.
    """

    use: str = "eval {place}"
    merged: str = "merged.safetensors  # plain weights"
    tag: str | None = None


class TaskKind:
    """A task; slow imports belong inside the methods.

    Attributes:
        elements: what its data consist of, in the plural.
        batched: what `train.batch_size` counts.
        data_keys: which of mixup, cutmix, caption and columns, keys of `data`, apply to it.
        augments: whether augment, rand_augment, random_erasing and balance do.
        smooths: whether `train.label_smoothing` applies to it.
        taught: whether `train.teacher` does.
        free: keys of its own section that a resumed run may change, because no trained number depends on them.
        card: of a run that is pushed to the hub.
        generates: how its models generate, by a name of `commands.generators.GENERATORS`; None: they do not.
        previews: how its training data are shown, by a name of `commands.previews.PREVIEWS`; None: they are not.
        tells_classes: whether its models predict classes: for `eval --predict` and a new head.
        has_classes: whether its data have classes that its models tell apart or are conditioned on.
        rate_of_any_scale: whether an adapter whose recipe sets its scale has a default learning rate, too.
        bases: the task that its bases are made for, by name; None: this one.
        head: `model.head` of a recipe that does not set it.
    """

    elements = "images"
    batched = "images"
    data_keys: Collection[str] = ("mixup", "cutmix")
    augments = True
    smooths = True
    taught = False
    free: Collection[str] = ()
    card = Card()
    generates: str | None = None
    previews: str | None = "images"
    tells_classes = False
    has_classes = True
    rate_of_any_scale = True
    bases: str | None = None
    head = "new"

    def section(self) -> type[Section] | None:
        """The keys of a recipe that this task alone has, under its name; None where it has none."""
        return None

    def trains_head(self, recipe: Recipe) -> bool:
        """Whether a new head is trained with the adapter."""
        return self.tells_classes and recipe.model.head == "new"

    def split(self, recipe: Recipe) -> str:
        """`data.split` of a recipe that does not set it."""
        return "content"

    def check_classes(self, recipe: Recipe, count: int | None) -> None:
        """Refuse to train on data of too few classes.

        Args:
            count: the number of classes; None if unknown.

        Raises:
            UsageError: there are too few.
        """

    def at_work(self, recipe: Recipe) -> type[Work]:
        """The class that trains and evaluates this recipe."""
        raise NotImplementedError

    def inputs(self, model: nn.Module, recipe: Recipe, images: Tensor) -> tuple[Tensor, ...]:
        """The arguments to call `model` with for images (n, 3, S, S); further arguments may have any valid values."""
        return (images,)
