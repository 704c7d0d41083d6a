"""What all tasks have in common: the trained tensors, the device, evaluation, result files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from superlora_cli.adapter import store
from superlora_cli.adapter.informed import inform
from superlora_cli.data.source import Splits
from superlora_cli.data.stream import Share
from superlora_cli.errors import UsageError, did_you_mean
from superlora_cli.models.recomputing import recompute
from superlora_cli.opening.build import Built
from superlora_cli.opening.model_file import model_bytes
from superlora_cli.opening.results import ADAPTER_FILE, MODEL_FILE
from superlora_cli.recipe.schema import Recipe
from superlora_cli.tasks import TASKS
from superlora_cli.tasks.outputs import check_outputs
from superlora_cli.tasks.teaching import KEY as TEACHER
from superlora_cli.tasks.teaching import Teacher
from superlora_cli.training.local import Local
from superlora_cli.training.processes import Processes

if TYPE_CHECKING:
    from superlora_cli.tasks.classification.confusion_table import ConfusionTable


FIRST = 8  # steps whose batches say where an adapter starts
SCALE = 2.0**10  # of fp16 losses there, so that small gradients are not lost; a start does not depend on it


@dataclass(frozen=True)
class Judgement:
    """The evaluation of a model on a whole split.

    Attributes:
        per_class: a row for every class that has images, with its name and number of images `n`; None without classes.
        confusion: None if an image does not have exactly one class.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]] | None = None
    confusion: ConfusionTable | None = None


class Work:
    """A task as the training loop sees it, except for its data, its loss and its score.

    Attributes:
        recipe: with the length of training in steps.
        measure: the metric that is reported first and selects the best step.
        unit: what throughput counts.
        confuses: whether an image has exactly one class, so that there is a confusion matrix.
        splits: the data.
        class_names: of the model's outputs, or of the labels it is conditioned on.
        teacher: whose answers are learned; None where the labels are.
        shows_progress: whether every evaluation shows a progress bar.
    """

    measure: ClassVar[str]
    unit: ClassVar[str] = "images"
    confuses: ClassVar[bool] = False
    shows_progress = False

    def __init__(self, built: Built, processes: Processes) -> None:
        self.built, self.processes = built, processes
        self.recipe, self.model = built.recipe, built.model
        self.splits = self._judging(self.read(built.recipe))
        self.arrange()
        self.recipe = self._in_steps()
        self.check_classes()
        self.class_names = built.class_names or self._unnamed() or self.splits.class_names
        self.match_classes()
        self.teacher = self._taught_by()
        self.in_training = False
        self.prepare()
        self._place()
        if self.teacher:
            self.teacher.place(self.processes)

    def read(self, recipe: Recipe) -> Splits:
        """The data of a recipe."""
        raise NotImplementedError

    def arrange(self) -> None:
        """Work on the data before their epochs can be counted in steps."""

    @property
    def share(self) -> Share:
        """This process's part of every step."""
        return Share(self.recipe.train.accumulate, self.processes.index, self.processes.count)

    def steps_of_epoch(self) -> int:
        """The number of steps in which all training data are seen once."""
        raise NotImplementedError

    def _in_steps(self) -> Recipe:
        """The recipe with `train.epochs`, if set, converted to steps for these data."""
        train = self.recipe.train
        if train.epochs is None:
            return self.recipe
        length = {"steps": train.epochs * self.steps_of_epoch(), "epochs": None}
        return self.recipe.model_copy(update={"train": train.model_copy(update=length)})

    def _judging(self, splits: Splits) -> Splits:
        """The splits of data to be trained on; of data other than those of training, all are for testing if they have
        no test part of their own.

        Raises:
            UsageError: there is nothing to train on.
        """
        called, name = TASKS[self.recipe.task].elements, self.recipe.data.name
        if not self.built.stored and not len(splits.train):
            hint = "add train, or use superlora eval, which needs a test part only"
            raise UsageError(f"no {called} to train on", where=name, hint=hint)
        if splits.whole is None or self.built.trained_on in (None, splits.fingerprint):
            return splits
        note = f"judged by all {len(splits.whole.test):,} {called} of {name}, which has no test part"
        return replace(splits.whole, notes=(*splits.whole.notes, note))

    def check_classes(self) -> None:
        """Refuse data with more classes than the model has.

        Raises:
            UsageError: there are more classes.
        """

    def match_classes(self) -> None:
        """Find the model's number for every class of the data."""

    def known_classes(self) -> int:
        """The number of classes that the model tells apart or is conditioned on, 0 if it has none."""
        return 0

    def _unnamed(self) -> tuple[str, ...]:
        """The numbers of a trained model's classes, if the data call theirs by number; else ()."""
        numbered = self.built.stored and all(map(str.isdecimal, self.splits.class_names))
        return tuple(map(str, range(self.known_classes()))) if numbered else ()

    def numbers_of(self, names: Sequence[str]) -> list[int]:
        """The model's number for every class of the data.

        Raises:
            UsageError: the data have a class that the model does not have.
        """
        own = {name: number for number, name in enumerate(self.class_names)}
        for name in names:
            if name not in own:
                hint = did_you_mean(name, self.class_names) or f"it has {', '.join(self.class_names[:8])}, …"
                raise UsageError(f"the model has no class '{name}'", where=self.recipe.data.name, hint=hint)
        return [own[name] for name in names]

    def _taught_by(self) -> Teacher | None:
        section = self.recipe.train.teacher
        if section is None or self.built.stored:
            return None
        found = Teacher(section, self.recipe.task)
        if differs := self.unlike(found.built):
            raise UsageError(f"{section.run} has other {differs}", where=TEACHER, hint="give a run with the same")
        return found

    def unlike(self, other: Built) -> str | None:
        """What must be the same for a model to learn from another one's outputs, but is not."""
        return None

    def prepare(self) -> None:
        """Work that is done once, before the model is on its device."""

    def _place(self) -> None:
        """Move the model to the device and set it up as the recipe's `train` section says."""
        train = self.recipe.train
        if train.gradient_checkpointing:
            recompute(self.model)
        if train.shard_base:
            if self.built.adapter is None:
                raise UsageError("needs an adapter: without one there is no frozen base", where="train.shard_base")
            if self.built.adapter.config.multiplies:
                message = "every process would hold the weights that ΔW is a product with"
                raise UsageError(message, where="train.shard_base", hint="adapter.multiply: none")
            self.processes.shard(self.model, {*self.trained().values(), *self.head().values()})
        else:
            self.processes.place(self.model)
        if train.compile:
            keywords = train.compile if isinstance(train.compile, dict) else {}
            known = torch._dynamo.list_backends(exclude_tags=None)
            if keywords.get("backend", "inductor") not in known:
                hint = did_you_mean(str(keywords["backend"]), known) or f"one of {', '.join(known)}"
                raise UsageError(f"unknown backend '{keywords['backend']}'", where="train.compile", hint=hint)
            self.model.compile(**keywords)

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Training mode; ΔW is built once per optimizer step."""
        if not self.in_training:
            self.in_training = True
            self.model.train()
        if self.built.adapter is None:
            yield
            return
        with self.built.adapter.one_step():
            yield

    def begin(self) -> None:
        """Start the adapter from what the batches of the first steps say, where its knobs ask for that.

        Raises:
            UsageError: the base is sharded. RunError: a gradient or an input is not finite.
        """
        adapter, train = self.built.adapter, self.recipe.train
        if adapter is None or not adapter.config.informed:
            return
        if train.shard_base and adapter.config.informed == "gradients":
            knob, hint = ("projection", "largest") if adapter.config.places else ("init", "unit")
            what = f"{knob} {getattr(adapter.config, knob)} with a sharded base"
            raise UsageError(what, where=f"adapter.{knob}", hint=f"{knob}: {hint}")

        def passes() -> None:
            with closing(self.batches(0, min(FIRST, train.length))) as batches, self.one_step():
                for batch in batches:
                    with self.processes.autocast():
                        loss = self.loss(batch)
                    if adapter.config.informed == "gradients":
                        (SCALE * loss if train.precision == "fp16" else loss).backward()

        inform(self.model, adapter, passes, average=lambda tensor: self.processes.average([tensor], stop=False))

    @property
    def guessing(self) -> float:
        """The loss of a model that guesses at random."""
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Parameter]:
        """The factors and the base's own tensors that are trained with them; without an adapter, the whole base."""
        if self.built.adapter is None:
            return dict(self.model.named_parameters())
        return {**dict(self.built.adapter.factors.items()), **self.built.also}

    def head(self) -> dict[str, nn.Parameter]:
        """The new head that is trained with an adapter."""
        return self.built.head

    def local(self) -> Local | None:
        """The groups of layers that are trained one after another, if the recipe asks for it."""
        return Local.of(self.recipe.train, self.built.adapter)

    def buffers(self) -> dict[str, Tensor]:
        """Running statistics of a base that is trained itself; the positions of an adapter's numbers."""
        if self.built.adapter:
            return self.built.adapter.positions
        stored = self.model.state_dict()
        return {name: buffer for name, buffer in self.model.named_buffers() if name in stored}

    def batches(self, start: int, stop: int) -> Generator[Any, None, None]:
        """This process's batches of steps `start` ... `stop` − 1 of the shuffled training split."""
        raise NotImplementedError

    def amount(self, batch: Any) -> int:
        """The size of a batch, in the task's `unit`."""
        raise NotImplementedError

    @classmethod
    def rehearsal(cls, built: Built) -> tuple[Callable[[], Any], Callable[[Any], Tensor]]:
        """To estimate memory: a function that makes a batch on torch's default device, and the loss of such a batch."""
        raise NotImplementedError

    @classmethod
    def rehearsed_evaluation(cls, built: Built) -> Callable[[], object] | None:
        """To estimate memory: a function that does the largest batch of an evaluation; None if it is not estimated."""
        return None

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def score(self) -> dict[str, float]:
        """Metrics on the split that selects the best step."""
        return self.evaluate(self.recipe.eval.select)

    def picture(self) -> bytes | None:
        """A PNG to look at beside the metrics of `score`; None for most tasks."""
        return None

    def judged_by(self) -> str:
        """`validation, 200 images`."""
        split = self.recipe.eval.select
        return f"{split}, {len(self.splits.named(split)):,} {TASKS[self.recipe.task].elements}"

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics on a whole split."""
        raise NotImplementedError

    def judged(self, split: str) -> tuple[dict[str, float], dict[str, str]]:
        """The metrics of `evaluate`, and further files for the run folder: file name → text."""
        return self.evaluate(split), {}

    def judge(self, split: str) -> Judgement:
        """The metrics of `evaluate`, and everything else that an evaluation reports."""
        return Judgement(self.evaluate(split))

    def better(self, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
        """Whether the metrics `new` are better than `old`: a lower loss, or more of another `measure`.

        Where two have as much of that, the lower loss is better.
        """
        if self.measure == "loss":
            return new["loss"] < old["loss"]
        return (new[self.measure], -new["loss"]) > (old[self.measure], -old["loss"])

    def not_finite(self) -> str | None:
        """The name of a target whose ΔW has NaN or Inf, if any; or whose factors have, if there is no ΔW."""
        adapter = self.built.adapter
        if adapter is None or not adapter.targets:
            return None
        with torch.no_grad():
            if adapter.config.activates:
                what, made = "the update", [torch.cat([one.flatten() for one in u.tensors]) for u in adapter.make()]
            else:
                what, made = "ΔW", adapter.compute()
        bad = torch.stack([~torch.isfinite(update).all() for update in made]).tolist()
        names = (f"{what} of {target.name}" for target in adapter.targets)
        return next((name for name, is_bad in zip(names, bad, strict=True) if is_bad), None)

    def check_outputs(self, outputs: Tensor) -> None:
        """Refuse outputs (n, ...) that are not finite, one row per image or text.

        Raises:
            RunError: some are NaN or Inf.
        """
        check_outputs(outputs, self.recipe.model.name, TASKS[self.recipe.task].elements)

    def exported(self, metrics: Mapping[str, Any]) -> dict[str, bytes]:
        """The result: adapter.safetensors, or model.safetensors if the base itself was trained."""
        recipe, adapter = self.recipe, self.built.adapter
        if adapter is None:
            state = {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}
            return {MODEL_FILE: model_bytes(state, recipe, metrics, tuple(self.class_names))}
        assert recipe.adapter is not None
        sha256, dtype = self.built.base_digest
        stored = store.StoredAdapter.of(
            adapter.config,
            adapter.targets,
            dict(adapter.factors.items()),
            patterns=recipe.adapter.patterns,
            base=(recipe.model.name, sha256, dtype),
            recipe=recipe.to_dict(),
            metrics=metrics,
            head=self.head(),
            also=self.built.also,
            positions=adapter.positions,
            classes=self.class_names,
        )
        return {ADAPTER_FILE: stored.to_bytes()}
