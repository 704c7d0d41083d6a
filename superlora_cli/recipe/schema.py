"""Every key of a recipe: its type, its default and what it does.

The descriptions are the documentation: `superlora schema` and the docs' table of keys are generated from them. Types
are strict (the text "5" is not a number, `true` is not 1) and unknown keys are errors. `adapter.config` checks which
of the adapter's knobs may be combined.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, create_model, model_serializer

from superlora_cli.adapter.activations import Activation
from superlora_cli.adapter.config import (
    NEWEST,
    PRESETS,
    AdapterConfig,
    Also,
    Combine,
    Execution,
    Fold,
    Init,
    Left,
    Scaling,
)
from superlora_cli.adapter.cores import CORES
from superlora_cli.adapter.inner_config import FrozenFrom, InnerProjection, Per
from superlora_cli.adapter.multiplied import MULTIPLY
from superlora_cli.adapter.projections import PROJECTIONS
from superlora_cli.errors import UsageError
from superlora_cli.recipe.named import named
from superlora_cli.tasks import TASKS

if TYPE_CHECKING:
    from superlora_cli.tasks.task import TaskKind

    Core = str
    Task = str
    Method = str
    Multiply = str
    Projection = str
else:
    Core = named(CORES)
    Task = named(TASKS)
    Method = named(PRESETS)
    Multiply = named(MULTIPLY)
    Projection = named(PROJECTIONS)


S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """Keys that belong together. Keys that are unset (None) are left out of the plain data."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        known = type(self).model_fields
        return {key: value for key, value in plain(self).items() if value is not None or key not in known}

    @property
    def keywords(self) -> dict[str, Any]:
        """Extra keys of a section that accepts any: arguments for torch, as written."""
        return dict(self.model_extra or {})


class HeadRows(Section):
    """A new head made of rows of the pretrained one."""

    select: list[int] = Field(min_length=1, description="Rows (classes) of the pretrained head, in the data's order.")


class ModelSection(Section):
    """The base model."""

    name: str = Field(
        min_length=1,
        description="A timm model, `hf-hub:USER/MODEL@REVISION` (pinned to a commit), a U-Net (`cfg_unet`, "
        "`diffusers`), a text-to-image pipeline (`diffusers:NAME@REVISION` or `diffusers:FOLDER`), a language model "
        "(`transformers:NAME@REVISION` or `transformers:FOLDER`), or a shipped base (`superlora ls models`).",
    )
    pretrained: bool = Field(True, description="Start from pretrained weights.")
    head: Literal["new", "frozen"] | HeadRows = Field(
        "new",
        description="`new`: a new classifier, trained with the adapter. `frozen`: the pretrained one, unchanged. "
        "`{select: [404, …]}`: those rows of the pretrained one, frozen. For `task: language` the default is `frozen`, "
        "the model's own; with `new`, it becomes a classifier of texts.",
    )
    checkpoint: str | None = Field(None, description="Local file with the weights of the base.")
    quantize: Literal["torchao-8bit", "bitsandbytes-8bit", "bitsandbytes-4bit"] | None = Field(
        None,
        description="Read the linear layers of a language model, or of a pipeline's denoiser and adapted text "
        "encoders, in 8 or 4 bits (extra `[quantize]`; docs/quantised.md).",
    )
    kwargs: dict[str, Any] = Field(
        {},
        description="Further arguments of `timm.create_model`, such as `img_size`, or of the U-Net; "
        "`{path: FOLDER}` is a U-Net saved by diffusers. Of a pipeline: `variant`, `torch_dtype` of its weights, and "
        "the `component` to train. Of a language model: `dtype` of its weights.",
    )


class DataSection(Section):
    """The images, or the texts."""

    name: str = Field(
        min_length=1,
        description="A folder of images, `torch/cifar100` or another torchvision set, `hfds/NAME` (Hugging Face; "
        "`hfds/NAME@REVISION` pins a commit), `wds/PATH` (webdataset shards), `vtab/NAME` or `fgvc/NAME` "
        "(docs/suites.md), `digits`, `glyphs` or `digits+glyphs`. "
        "Of texts: a file (`.jsonl`, `.csv`, `.parquet`, `.txt`) or a folder of them, `hfds/NAME`, or made ones: "
        "`sums`, `sums-in-words` …, several joined by `+`.",
    )
    caption: str | None = Field(
        None,
        description="Template of captions, for text-to-image: `{text}` is the image's own caption, `{class}` the name "
        "of its folder. Default: `{text}`.",
    )
    columns: dict[str, str] | None = Field(
        None,
        description="Of texts: the columns that stand for `text`, `prompt`, `completion`, `messages`, `choices`, "
        '`answer` or `label`, or a text with several: `{prompt: "Question: {question}", completion: answer}`.',
    )
    config: str | None = Field(None, min_length=1, description="Configuration of a Hugging Face set with several.")
    root: str = Field("data", description="Folder that holds a torchvision set, or the sets of a suite.")
    image_size: int | None = Field(None, ge=1, description="Image size in pixels; default: the model's.")
    validation: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Fraction of the training images held out for validation, and as many again for testing if the "
        "data have no test part.",
    )
    split: Literal["content", "label", "shuffle"] | None = Field(
        None,
        description="How images are held out. `content`: a fraction of every class, by a hash of the images, so that "
        "adding or removing images hardly changes the split; of texts, whatever their labels. `label`: the same, and a "
        "fraction of the texts of every label. `shuffle`: by their positions. Default: `label` for a classifier of "
        "texts, else `content`, which a run records in its recipe; a finished run without the key predates it and "
        "keeps `shuffle`.",
    )
    download: bool = Field(False, description="Download a missing torchvision or Hugging Face set.")
    num_classes: int | None = Field(None, ge=1, description="Number of classes; default: that of the data.")
    train_images: int | None = Field(None, ge=1, description="Number of training images of a rendered set (`glyphs`).")
    eval_images: int | None = Field(None, ge=1, description="Number of test images of a rendered set (`glyphs`).")
    train_texts: int | None = Field(
        None, ge=1, description="Number of training texts of a made set (`sums`), or at most of others."
    )
    eval_texts: int | None = Field(
        None, ge=1, description="Number of test texts of a made set (`sums`), or at most of others."
    )
    pixel_noise: float | None = Field(
        None, ge=0, le=1, description="Noise in a rendered set (`glyphs`), as a share of the full range; default 0.02."
    )
    multi_label: bool | None = Field(
        None,
        description="Whether images have any number of labels, from a table `labels.csv`. Default: whether the folder "
        "has one with the column `labels`; a run records it in its recipe.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Loader processes; 0 loads in the training process. Evaluating or predicting 1,000 or more images "
        "of a folder starts a few in any case.",
    )
    augment: Literal["none", "crop_flip", "shift"] | None = Field(
        None,
        description="Training transform. `crop_flip`: random resized crop and horizontal flip; `shift`: for embedded "
        "sets, shifts by up to a pixel. Default: `crop_flip`, but `none` for embedded sets and diffusion.",
    )
    rand_augment: Annotated[int, Field(ge=0, le=10)] | str | None = Field(
        None, description="RandAugment of training images: a magnitude, or timm's full notation: `rand-m9-mstd0.5`."
    )
    random_erasing: float | None = Field(
        None, ge=0, le=1, description="Probability that a part of a training image is replaced by noise."
    )
    mixup: float | None = Field(
        None, gt=0, description="Mix every training image with another of its batch: α of MixUp's Beta distribution."
    )
    cutmix: float | None = Field(
        None,
        gt=0,
        description="Paste a part of another image of the batch: α of CutMix. With `mixup`, one of both at random.",
    )
    balance: bool | None = Field(
        None, description="Sample training images so that all classes are equally frequent; rare ones are repeated."
    )


class InnerSection(Section):
    """F_in: maps a few trained numbers θ to all trained entries of the factors."""

    projection: InnerProjection | None = Field(
        None,
        description="`onehot`: every entry is one of the numbers; `dense`: a random matrix, held in memory; "
        "`fastfood`: like the projection `linear`; `bank`: mixtures of vectors from a trained bank; `none`: the "
        "factors themselves are trained.",
    )
    dim: int | None = Field(None, description="Length of θ, or of a bank's vectors; default 64.")
    per: Per | None = Field(
        None, description="One θ for `all` groups (default), one per `group`, or one per `factor` of each group."
    )
    vectors: int | None = Field(None, description="Vectors in a bank; default 16.")
    topk: int | None = Field(None, description="Vectors of the bank in each mixture; default 2.")


class AdapterSection(Section):
    """The adapter: the knobs of Eq. 2. Unset knobs come from the preset `method`, else from the knob's default."""

    method: Method | None = Field(
        None,
        description="Preset of knobs, which the keys below override. `none` trains only the head.",
    )
    targets: list[str] = Field(
        ["q", "v"],
        min_length=1,
        description="Weights to adapt: `q k v o mlp all-linear`, or quoted patterns of module names with an optional "
        'slice of a fused weight, e.g. `"blocks.*.attn.qkv[q]"`.',
    )
    groups: int | Literal["weight", "layer", "none"] | None = Field(
        None,
        description="Number of groups G that all targets together are cut into, or one unit per weight or layer; "
        "`none`: no ΔW, whatever the targets.",
    )
    order: int | None = Field(None, description="Tensor order M of a unit: 1 dense, 2 matrix, 3 or more Tucker.")
    rank: int | list[int | Literal["full"]] | None = Field(
        None, description="Rank r, or one per mode; `full`: that mode has no factor."
    )
    core: Core | None = Field(None, description="Core tensor C; default `identity` for M ≤ 2, else `dense`.")
    splits: int | None = Field(None, description="Number of Kronecker factors K.")
    split_dim: int | None = Field(None, description="Side f of the left Kronecker factor.")
    combine: Combine | None = Field(None, description="How the K units are combined.")
    left: Left | None = Field(None, description="Form of the left Kronecker factor.")
    terms: int | Literal["full"] | None = Field(
        None, description="Number of products to sum; `full`: enough for ΔW to have full rank."
    )
    fold: Fold | None = Field(
        None, description="Shape that a group is folded to; `kernel` keeps those of convolutions."
    )
    align: int | None = Field(None, description="Each folded side is rounded up to a multiple of this.")
    projection: Projection | None = Field(None, description="Fixed projection F from parameters to weights.")
    ratio: float | None = Field(
        None, description="Compression ratio ρ = N_in/N_out of the projection, an exact decimal."
    )
    rescale: bool | None = Field(None, description="Multiply F by √(2^N/N_in), so that ρ does not shrink the steps.")
    alpha: float | None = Field(
        None,
        description="Scale of ΔW, used as `scaling` says; default: the rank, or 2 with `weights` "
        "(2/ρ^¼ under a linear F of ratio ρ, 0.5 up to 8 bits).",
    )
    scaling: Scaling | None = Field(
        None,
        description="ΔW is multiplied by alpha/rank, alpha/√rank or alpha; `weights`: by alpha (2) times the size of "
        "the weights it is added to, so that one learning rate fits every base. Default: `weights` if alpha is unset, "
        "the factors start at unit scale and the optimizer is not SGD; else `alpha_over_rank`.",
    )
    init: Init | None = Field(
        None,
        description="`unit`: factors with entries of unit scale; `lora`: Kaiming. From the batches of the first 8 "
        "steps, `gradient`: singular vectors of the weights' gradients; `activations`: principal components of the "
        "layers' inputs (EVA), with an update that stays linear, unlike `activation`.",
    )
    execution: Execution | None = Field(
        None, description="Compute through the factors, through ΔW, or whichever is cheaper."
    )
    seed: int | None = Field(None, description="Seed of everything fixed, and of the initial values.")
    inner: InnerSection | None = Field(
        None, description="F_in: maps a few numbers to all trained entries of the factors."
    )
    freeze: list[str] | None = Field(
        None,
        description="Factors that are not trained: `core`, `planes`, `A1` …; in one Kronecker unit `left`, `right`, "
        "`left.core`, `right.A1` …",
    )
    frozen: FrozenFrom | None = Field(
        None,
        description="Values of frozen factors: `random`, the same for all groups of a shape, or `svd`: singular "
        "vectors of the group's own base weights. They are never stored.",
    )
    diagonals: list[int] | None = Field(
        None, description="Modes whose plane factor is multiplied by a trained diagonal, like VeRA's scaling vectors."
    )

    also: list[Also] | None = Field(
        None,
        description="Tensors of the base to train directly: every `bias` outside the head, or all parameters of "
        "normalisation layers (`norm`). Works with any method; `bitfit` is `none` with `[bias]`.",
    )
    multiply: Multiply | None = Field(
        None,
        description="ΔW as a product with the base's weight W: `elementwise` W ⊙ X (HiRA), `rows` diag(x) W and "
        "`columns` W diag(x) (IA³), `rotation` W (Q − 1) (OFT), `magnitude` (DoRA); the equation makes X. Default: "
        "`none`, ΔW = X.",
    )
    block: int | None = Field(None, description="Side of the blocks of a `rotation`; default: 32.")
    activation: Activation | None = Field(
        None,
        description="σ of a nonlinear update B σ(A x) of a layer's outputs (LoDA), for units of two factors a weight. "
        "Such an adapter has no ΔW: it cannot be merged or exported. Default: `identity`, a linear update. A start "
        "from inputs (EVA) is `init: activations`.",
    )
    bits: int | None = Field(
        None,
        description="Bits per trained number, in training and in the file: `1` to `8` (straight-through rounding "
        "to evenly spaced levels) or `16` (bfloat16); default: float32.",
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets; none if no weight is adapted."""
        return tuple(self.targets) if self.config().adapts else ()

    @property
    def knobs(self) -> dict[str, Any]:
        """The knobs that are set, without `method` and `targets`."""
        return self.model_dump(exclude={"method", "targets"})

    @property
    def scales_itself(self) -> bool:
        """Whether the recipe sets the scale of ΔW, whatever the size of the base's weights."""
        return self.scaling != "weights" if self.scaling else self.alpha is not None

    def config(self, *, defaults: int = 1) -> AdapterConfig:
        """The preset with the knobs that are set on top, with a version of the `defaults` that `from_knobs` knows.

        Raises:
            UsageError: the knobs contradict each other; `where` is the key, e.g. `adapter.rank`.
        """
        return AdapterConfig.from_knobs(self.method, defaults=defaults, **self.knobs)


class OptimizerSection(Section):
    """The optimizer; further keys, such as `weight_decay`, are arguments of that class of `torch.optim`."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("AdamW", description="A class of `torch.optim`.")
    lr: Annotated[float, Field(ge=0)] | Literal["find"] | None = Field(
        None,
        description="Learning rate of the adapter (of the base if there is no adapter); `find`: that of `superlora "
        "find-rate`, which the run then records in its recipe. Default: 0.03 for an adapter with AdamW, 0.1 with "
        "`bits` of 1 to 8; required otherwise, and in text-to-image where `adapter.alpha` or another `scaling` than "
        "`weights` is set.",
    )
    head_lr: float | None = Field(None, ge=0, description="Learning rate of a trained head; default: `lr`.")

    @property
    def finds(self) -> bool:
        """Whether a range test is to find the rate."""
        return self.lr == "find"

    @property
    def rate(self) -> float:
        """`lr`, which `with_defaults` filled in, and a range test where it is to be found."""
        assert isinstance(self.lr, float)
        return self.lr


class SchedulerSection(Section):
    """The learning-rate schedule; further keys, such as `cycle_momentum`, are arguments of that class."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("constant", description="`constant`, or a class of `torch.optim.lr_scheduler`.")
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up before the schedule.")


class LocalSection(Section):
    """Local LoRA: groups of layers are trained one after another."""

    groups: int = Field(ge=2, description="Number of groups; each has an equal share of the steps.")


class TeacherSection(Section):
    """A finished run whose outputs are learned."""

    run: str = Field(description="A run, or an adapter or model file, with the same classes or tokens.")
    temperature: float = Field(2.0, gt=0, description="What the outputs of both are divided by.")
    weight: float = Field(1.0, gt=0, le=1, description="Share of this loss; the rest is the loss of the labels.")


class TrainSection(Section):
    """The training loop."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps; either this or `epochs`.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training images, instead of `steps`; a run records the resulting steps in its "
        "recipe.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations (`eval.every`) without improvement after which training ends early; the best step is "
        "kept.",
    )
    batch_size: int = Field(64, ge=1, description="Images per forward pass and process.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Precision of the forward pass.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where to train; `auto`: a GPU if available."
    )
    accumulate: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    compile: bool | dict[str, Any] | None = Field(
        None, description="Compile the model: `true`, or arguments of `torch.compile`, such as `{mode: max-autotune}`."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, slower steps.")
    clip_norm: float | None = Field(None, gt=0, description="Clip the total norm of the gradients to this.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="Optimizer, with torch's names.")
    scheduler: SchedulerSection | None = Field(
        None, description="Learning-rate schedule, with torch's names; default: OneCycleLR with pct_start 0.1."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the trained weights, which is then evaluated and saved; "
        "step n (from 1) has at most n / (9 + n), so that the average soon forgets the start.",
    )
    local: LocalSection | None = Field(
        None, description="Train groups of layers one after another, from the first to the last (docs/training.md)."
    )
    teacher: TeacherSection | None = Field(
        None, description="Learn what another run answers, not the labels alone (docs/training.md)."
    )
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints.")
    keep: int = Field(
        2,
        ge=1,
        description="Number of newest checkpoints to keep; of others, the adapter stays if its step has pictures.",
    )
    checkpoint_at: list[int] = Field([], description="Steps whose checkpoints are never deleted.")
    log_every: int = Field(10, ge=1, description="Steps between logged metrics.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; a resumed run only repeats exactly with the same number."
    )
    profile: bool | None = Field(None, description="Write a trace of a few steps to `trace.json.gz`, for Perfetto.")
    shard_base: bool | None = Field(
        None, description="Shard the frozen base over the processes (FSDP), if it does not fit on one device."
    )

    @property
    def length(self) -> int:
        """Optimizer steps, after `epochs`, if set, were converted to steps."""
        assert self.steps is not None
        return self.steps

    def at_rate(self, rate: float) -> TrainSection:
        """The same with another `optimizer.lr`."""
        return self.model_copy(update={"optimizer": self.optimizer.model_copy(update={"lr": rate})})


class EvalSection(Section):
    """Evaluation during and after training."""

    every: int | None = Field(None, ge=1, description="Steps between evaluations; default: at the end only.")
    batch_size: int = Field(256, ge=1, description="Images per forward pass.")
    select: Literal["validation", "test"] = Field("validation", description="Split that selects the best step.")


class OutputSection(Section):
    """What a run leaves behind."""

    dir: str | None = Field(None, description="Folder of the run; default: `runs/<recipe>`, or the next free name.")
    trackers: list[Literal["jsonl", "tensorboard", "wandb"]] = Field(
        ["jsonl"], description="Where metrics go in addition to `metrics.jsonl`, which is always written."
    )


class Recipe(Section):
    """A superlora recipe: one training run, from base model to adapter."""

    model_config = ConfigDict(defer_build=True)  # what is read is `recipe_model`

    task: Task = Field("classification", description="What the model is trained for.")
    defaults: int | None = Field(
        None,
        ge=1,
        le=NEWEST,
        description="Version of the defaults for unset keys; a run records it. Default: the newest, but 1 for recipes "
        "of runs from before there were versions.",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything random in the run.")
    model: ModelSection = Field(description="The base model.")
    data: DataSection = Field(description="The images, or the texts.")
    adapter: AdapterSection | None = Field(None, description="The adapter; without it the base itself is trained.")
    train: TrainSection = Field(description="The training loop.")
    eval: EvalSection = Field(EvalSection(), description="Evaluation.")
    output: OutputSection = Field(OutputSection(), description="What the run leaves behind.")

    def to_dict(self) -> dict[str, Any]:
        """All values, including defaults but not unset keys; `recipe_model().model_validate` restores the recipe."""
        return self.model_dump()

    def section(self, kind: type[S]) -> S:
        """The section under the name of the recipe's task, or the defaults of its `kind`."""
        found: S | None = getattr(self, self.task, None)
        return found or kind()

    def to_json(self) -> str:
        """`to_dict` as canonical JSON: sorted keys, no spaces, so that equal recipes have equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def recipe_model() -> type[Recipe]:
    """`Recipe` with the sections that tasks have of their own, each under its task's name.

    Raises:
        UsageError: a task from outside has a section, and the name of another key.
    """
    return _with_sections(tuple(TASKS.items()))  # another one, where a task has been added since


@cache
def _with_sections(tasks: tuple[tuple[str, TaskKind], ...]) -> type[Recipe]:
    found: dict[str, Any] = {}
    for name, kind in tasks:
        section = kind.section()
        if section is not None and name in Recipe.model_fields:
            raise UsageError(f"the task {name} has a section, and the name of a key", where=name, hint="another name")
        if section is not None:
            found[name] = section | None, None
    return create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, **found)
