"""Every key of a recipe: its type, its default and what it does.

The descriptions are the documentation: `superlora schema` and the docs' table of keys are made from them. Types are
strict (the text "5" is no number, `true` is no 1) and unknown keys are errors. What knobs of the adapter may be
together is `adapter.config`'s to say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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
from superlora_cli.adapter.projections import PROJECTIONS
from superlora_cli.recipe.named import named
from superlora_cli.tasks import TASKS

if TYPE_CHECKING:
    Core = str
    Task = str
    Method = str
    Projection = str
else:
    Core = named(CORES)
    Task = named(TASKS)
    Method = named(PRESETS)
    Projection = named(PROJECTIONS)


class Section(BaseModel):
    """Keys that belong together. As plain data, keys that were left unset (None) are left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        known = type(self).model_fields
        return {key: value for key, value in plain(self).items() if value is not None or key not in known}

    @property
    def keywords(self) -> dict[str, Any]:
        """The further keys of a section that takes any: arguments for torch, as written."""
        return dict(self.model_extra or {})


class HeadRows(Section):
    """A new head made of rows of the pretrained one."""

    select: list[int] = Field(min_length=1, description="Rows (classes) of the pretrained head, in the data's order.")


class ModelSection(Section):
    """The base model."""

    name: str = Field(
        min_length=1,
        description="A timm model, `hf-hub:USER/MODEL@REVISION` (pinned to a commit), a U-Net (`cfg_unet`, "
        "`diffusers`), or a shipped base (`superlora ls models`).",
    )
    pretrained: bool = Field(True, description="Start from pretrained weights.")
    head: Literal["new", "frozen"] | HeadRows = Field(
        "new",
        description="`new`: a fresh classifier, trained beside the adapter. `frozen`: the pretrained one as it is. "
        "`{select: [404, …]}`: those rows of the pretrained one, frozen.",
    )
    checkpoint: str | None = Field(None, description="File of local weights for the base.")
    kwargs: dict[str, Any] = Field(
        {},
        description="Further arguments of `timm.create_model`, such as `img_size`, or of the U-Net; "
        "`{path: FOLDER}` is a U-Net that diffusers saved.",
    )


class DataSection(Section):
    """The images."""

    name: str = Field(
        min_length=1,
        description="A folder of images, `torch/cifar100` and other sets of torchvision, `hfds/NAME` (Hugging Face; "
        "`hfds/NAME@REVISION` pins a commit), "
        "`wds/PATH` (webdataset shards), `digits`, `glyphs` or `digits+glyphs`.",
    )
    config: str | None = Field(None, min_length=1, description="Configuration of a Hugging Face set that has several.")
    root: str = Field("data", description="Folder that holds a set of torchvision.")
    image_size: int | None = Field(None, ge=1, description="Side of the images in pixels; default: the model's.")
    validation: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Part of the training images held out for validation, and as much for testing where the data "
        "have no test part.",
    )
    split: Literal["content", "shuffle"] | None = Field(
        None,
        description="How they are held out: `content`: a part of every class, by a hash of the images, so that the "
        "split stays where images come or go; `shuffle`: by their places. A training without it takes `content` and "
        "records it in its recipe; a finished run without the key predates it, and keeps `shuffle`.",
    )
    download: bool = Field(False, description="Download a set of torchvision or Hugging Face where it is missing.")
    num_classes: int | None = Field(None, ge=1, description="Number of classes; default: as the data say.")
    train_images: int | None = Field(None, ge=1, description="Number of training images of a rendered set (`glyphs`).")
    eval_images: int | None = Field(None, ge=1, description="Number of test images of a rendered set (`glyphs`).")
    pixel_noise: float | None = Field(
        None, ge=0, le=1, description="Noise in a rendered set (`glyphs`), a share of the full range; default 0.02."
    )
    multi_label: bool | None = Field(
        None,
        description="Images have any number of labels, of a table `labels.csv`. Default: where the folder has one; a "
        "run writes it into its recipe.",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Loader processes; 0 loads in the training process. To evaluate or predict 1,000 images "
        "of a folder or more, a few are started in any case.",
    )
    augment: Literal["none", "crop_flip", "shift"] | None = Field(
        None,
        description="Training transform; `crop_flip`: random resized crop and horizontal flip; `shift`: embedded sets, "
        "moved by up to a pixel. Default: `crop_flip`, for embedded sets and diffusion `none`.",
    )
    rand_augment: Annotated[int, Field(ge=0, le=10)] | str | None = Field(
        None, description="RandAugment of training images: a magnitude, or all of it as timm has it: `rand-m9-mstd0.5`."
    )
    random_erasing: float | None = Field(
        None, ge=0, le=1, description="Probability that a part of a training image becomes noise."
    )
    mixup: float | None = Field(
        None, gt=0, description="Mix every training image with another of its batch; α of MixUp's Beta distribution."
    )
    cutmix: float | None = Field(
        None, gt=0, description="Paste a part of another image of the batch; α of CutMix. With `mixup`: one by chance."
    )
    balance: bool | None = Field(
        None, description="Draw training images so that every class comes equally often, rare ones again and again."
    )


class InnerSection(Section):
    """F_in: a few trained numbers θ become every trained entry of the factors."""

    projection: InnerProjection | None = Field(
        None,
        description="`onehot`: every entry is one of the numbers; `dense`: a random matrix, held in memory; "
        "`fastfood`: as the projection `linear`; `none`: the factors themselves are trained.",
    )
    dim: int | None = Field(None, description="How many numbers a θ has; default 64.")
    per: Per | None = Field(
        None, description="One θ for `all` groups (default), one for each `group`, or for each `factor` of each group."
    )


class AdapterSection(Section):
    """The adapter: the knobs of Eq. 2. What is unset comes from the preset `method`, else from the knob's default."""

    method: Method | None = Field(
        None,
        description="Preset that sets knobs and nothing else; the keys below override. `none` trains the head alone.",
    )
    targets: list[str] = Field(
        ["q", "v"],
        min_length=1,
        description="Weights to adapt: `q k v o mlp all-linear`, or quoted patterns of module names with an optional "
        'slice of a fused weight, as `"blocks.*.attn.qkv[q]"`.',
    )
    groups: int | Literal["weight", "layer", "none"] | None = Field(
        None,
        description="Number of groups G that all targets together are cut into, or one unit per weight or layer; "
        "`none`: no ΔW, whatever the targets.",
    )
    order: int | None = Field(None, description="Tensor order M of a unit: 1 dense, 2 matrix, 3 and more Tucker.")
    rank: int | list[int | Literal["full"]] | None = Field(
        None, description="Rank r, or one per mode; `full`: that mode has no factor."
    )
    core: Core | None = Field(None, description="Core tensor C; default `identity` for M ≤ 2, else `dense`.")
    splits: int | None = Field(None, description="Number of Kronecker factors K.")
    split_dim: int | None = Field(None, description="Side f of the left Kronecker factor.")
    combine: Combine | None = Field(None, description="How the K units combine.")
    left: Left | None = Field(None, description="Form of the left Kronecker factor.")
    terms: int | Literal["full"] | None = Field(
        None, description="Number of products that are summed; `full`: as many as give ΔW full rank."
    )
    fold: Fold | None = Field(None, description="Shape that a group is folded to.")
    align: int | None = Field(None, description="Each folded side is rounded up to a multiple of this.")
    projection: Projection | None = Field(None, description="Fixed projection F from parameters to weights.")
    ratio: float | None = Field(None, description="Compression ρ = N_in/N_out of the projection, an exact decimal.")
    rescale: bool | None = Field(None, description="Multiply F by √(2^N/N_in), so that ρ does not shrink the step.")
    alpha: float | None = Field(
        None, description="Scale of ΔW, as `scaling` uses it; default: the rank, for `weights` 2."
    )
    scaling: Scaling | None = Field(
        None,
        description="ΔW is multiplied by alpha/rank, alpha/√rank or alpha; `weights`: ΔW gets alpha (2) times the size "
        "of the weights it is added to, so that one rate fits every base. Default: `weights` where alpha is unset, the "
        "factors start at unit scale and the optimizer is not SGD; else `alpha_over_rank`.",
    )
    init: Init | None = Field(None, description="`unit`: factors with entries of unit scale; `lora`: Kaiming.")
    execution: Execution | None = Field(None, description="Through the factors, through ΔW, or the cheaper of the two.")
    seed: int | None = Field(None, description="Seed of all that is fixed, and of what is trained at its start.")
    inner: InnerSection | None = Field(
        None, description="F_in: a few numbers become all trained entries of the factors."
    )
    freeze: list[str] | None = Field(
        None,
        description="Factors that are not trained: `core`, `planes`, `A1` …; of one Kronecker unit `left`, `right`, "
        "`left.core`, `right.A1` …",
    )
    frozen: FrozenFrom | None = Field(
        None,
        description="What frozen factors are: `random`, the same for all groups of a shape, or `svd`: singular "
        "vectors of the group's own base weights. They are never stored.",
    )
    diagonals: list[int] | None = Field(
        None, description="Modes whose plane factor is multiplied by a trained diagonal, as VeRA's scaling vectors."
    )

    also: list[Also] | None = Field(
        None,
        description="Tensors of the base that are trained themselves: every `bias` outside of the head, all that "
        "normalisation layers (`norm`) have. With any method; `bitfit` is `none` with `[bias]`.",
    )
    bits: int | None = Field(
        None,
        description="Bits of each trained number: `1` to `8`, in training already (straight-through rounding to evenly "
        "spaced levels) and in the file, or `16` (bfloat16); default: float32.",
    )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The targets; none where no weight is adapted."""
        return tuple(self.targets) if self.config().adapts else ()

    @property
    def knobs(self) -> dict[str, Any]:
        """The knobs that are set, without `method` and `targets`."""
        return self.model_dump(exclude={"method", "targets"})

    def config(self, *, defaults: int = 1) -> AdapterConfig:
        """The preset with the set knobs on top, by a version of the `defaults` that `from_knobs` knows.

        Raises:
            UsageError: on knobs that do not go together; `where` is the key, as `adapter.rank`.
        """
        return AdapterConfig.from_knobs(self.method, defaults=defaults, **self.knobs)


class OptimizerSection(Section):
    """The optimizer, with any further argument of that class of `torch.optim`, such as `weight_decay`."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("AdamW", description="A class of `torch.optim`.")
    lr: float | None = Field(
        None,
        ge=0,
        description="Learning rate of the adapter (of the base where there is no adapter). Default: 0.03 for an "
        "adapter under AdamW; anything else needs one.",
    )
    head_lr: float | None = Field(None, ge=0, description="Learning rate of a trained head; default: `lr`.")


class SchedulerSection(Section):
    """The schedule of the learning rate, with any further argument of that class, such as `cycle_momentum`."""

    model_config = ConfigDict(extra="allow")

    name: str = Field("constant", description="`constant`, or a class of `torch.optim.lr_scheduler`.")
    warmup: int = Field(0, ge=0, description="Steps of linear warm-up before it.")


class TrainSection(Section):
    """The training loop."""

    steps: int | None = Field(None, ge=1, description="Optimizer steps; these or `epochs`.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the training images, in place of `steps`; a run writes the steps that they come to "
        "into its recipe.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations (`eval.every`) without a better one, after which the training ends early, the best "
        "step kept.",
    )
    batch_size: int = Field(64, ge=1, description="Images per forward pass and process.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Precision of the forward pass.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train; `auto`: a GPU if any.")
    accumulate: int = Field(1, ge=1, description="Forward passes per optimizer step.")
    compile: bool | dict[str, Any] | None = Field(
        None, description="Compile the model: `true`, or arguments of `torch.compile`, such as `{mode: max-autotune}`."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, a slower step.")
    clip_norm: float | None = Field(None, gt=0, description="Clip the norm of all gradients together to this.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy.")
    optimizer: OptimizerSection = Field(OptimizerSection(), description="Optimizer, with torch's own names.")
    scheduler: SchedulerSection | None = Field(
        None, description="Learning-rate schedule, with torch's own names; default: OneCycleLR with pct_start 0.1."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the trained weights, which then is "
        "what is evaluated and kept.",
    )
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints that are kept, the newest.")
    checkpoint_at: list[int] = Field([], description="Steps whose checkpoints are never deleted.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; a resumed run repeats exactly with the same number."
    )
    profile: bool | None = Field(None, description="Write a trace of a few steps to `trace.json.gz`, for Perfetto.")
    shard_base: bool | None = Field(
        None, description="Spread the frozen base over the processes (FSDP): for one that does not fit on a device."
    )

    @property
    def length(self) -> int:
        """Optimizer steps of a training whose `epochs`, if it has any, have become steps."""
        assert self.steps is not None
        return self.steps


class DiffusionSection(Section):
    """How the task `diffusion` adds noise."""

    steps: int = Field(1000, ge=2, description="Time steps T from an image to noise.")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="Variance β of the noise that the first step adds.")
    beta_end: float = Field(0.02, gt=0, lt=1, description="And of the last; linear in between.")
    class_dropout: float = Field(
        0.1, ge=0, le=1, description="Part of the images whose class is not told, so that guidance has both."
    )


class EvalSection(Section):
    """Evaluation during and after training."""

    every: int | None = Field(None, ge=1, description="Steps between evaluations; default: at the end only.")
    batch_size: int = Field(256, ge=1, description="Images per forward pass.")
    select: Literal["validation", "test"] = Field("validation", description="Split on which the best step is chosen.")


class OutputSection(Section):
    """What a run leaves behind."""

    dir: str | None = Field(None, description="Folder of the run; default `runs/<recipe>`, or the next free one.")
    trackers: list[Literal["jsonl", "tensorboard", "wandb"]] = Field(
        ["jsonl"], description="Where metrics go, besides `metrics.jsonl`, which is always written."
    )


class Recipe(Section):
    """A recipe of superlora: one training run, from base model to adapter."""

    task: Task = Field("classification", description="What the model is tuned for.")
    defaults: int | None = Field(
        None,
        ge=1,
        le=NEWEST,
        description="Version of the defaults that unset keys have; a run records it. Default: the newest; 1 for what a "
        "run recorded before there were versions.",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything random in the run.")
    model: ModelSection = Field(description="The base model.")
    data: DataSection = Field(description="The images.")
    adapter: AdapterSection | None = Field(None, description="The adapter; without it the base itself is trained.")
    diffusion: DiffusionSection | None = Field(None, description="Noise, where the task is `diffusion`.")
    train: TrainSection = Field(description="The training loop.")
    eval: EvalSection = Field(EvalSection(), description="Evaluation.")
    output: OutputSection = Field(OutputSection(), description="What the run leaves behind.")

    def to_dict(self) -> dict[str, Any]:
        """All values, defaults included and unset ones left out; `Recipe.model_validate` gives the recipe back."""
        return self.model_dump()

    def to_json(self) -> str:
        """`to_dict` as canonical JSON: sorted keys, no spaces, so that equal recipes are equal bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
