"""Text-to-image pipelines as bases: `diffusers:FOLDER`, `diffusers:NAME@REVISION` of the hub, or a shipped one.

The base is the pipeline's denoiser, with the text encoders that targets name, or what `model.kwargs.component` names:
its autoencoder (`vae`), or the denoiser with text encoders (`[unet, text_encoder]`) to train all of it without an
adapter. The other parts are loaded when they are needed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from superlora_cli.adapter.packed import is_packed, move
from superlora_cli.errors import SuperLoraError, UsageError, did_you_mean
from superlora_cli.models.arguments import refuse_others, with_dtype
from superlora_cli.models.base import Base
from superlora_cli.models.embedded import ASSETS, PIPELINES
from superlora_cli.models.families.naming import in_files
from superlora_cli.models.hub import cache_folder, cache_if_unreachable
from superlora_cli.models.loading import load_weights
from superlora_cli.models.quantising import KEY, as_shapes, check_section, settings, settled
from superlora_cli.models.targets import part_named, set_beside

if TYPE_CHECKING:
    from superlora_cli.models.families.family import Family
    from superlora_cli.recipe.schema import ModelSection

PREFIX, INDEX = "diffusers:", "model_index.json"
HALF = (0.5, 0.5, 0.5)  # mean and standard deviation: [0, 1] becomes [−1, 1]
EXTRA = "pip install 'superlora-cli[text-to-image]'"
AGAIN = "copy or download the pipeline again"
ABSENT = [None, None]  # in the index: a part that a pipeline may have, but has not
SAMPLE = 128  # side of latents, where a pipeline does not say it
ARGUMENTS = ("torch_dtype", "variant")  # of `from_pretrained`
COMPONENT, VAE = "component", "vae"


@dataclass(frozen=True, kw_only=True)
class PipelineBase(Base):
    """A component of a pipeline, as `model`.

    Attributes:
        folder: the pipeline.
        component: its name, that of the denoiser or `vae`.
        kind: its class.
        scale: pixels per latent pixel.
        options: for `from_pretrained`: dtype and variant.
        quantize: how the denoiser and the text encoders that are adapted are quantised, if they are.
        encoders: text encoders that are trained as well, children of `model` under their names in the pipeline.
    """

    folder: Path
    component: str
    kind: str
    scale: int
    options: Mapping[str, Any]
    quantize: str | None = None
    encoders: dict[str, nn.Module] = field(default_factory=dict)

    def include(self, patterns: Iterable[str]) -> None:
        """Load the text encoders that patterns name: `text_encoder.*.q_proj`.

        Raises:
            UsageError: one cannot be loaded, or is to be trained whole.
        """
        if self.encoders:
            hint = f"leave it out, and name weights in adapter.targets: {next(iter(self.encoders))}.*.q_proj"
            raise UsageError(
                "trains text encoders without an adapter only", where=f"model.kwargs.{COMPONENT}", hint=hint
            )
        for name in () if self.component == VAE else self.family.encoders:
            if any(part_named(pattern, (name,)) for pattern in patterns):
                self.set_beside(name)

    def set_beside(self, name: str, *, own: bool = True) -> None:
        """Make a text encoder a child of `model`, with its own weights or, shapes only or not, without them.

        Raises:
            UsageError: it cannot be loaded.
        """
        self.encoders[name] = self._part(name, own=own, quantize=self.quantize)
        self.model.add_module(name, self.encoders[name])
        set_beside(self.model, tuple(self.encoders))

    def separate(self) -> None:
        """Make the text encoders children of `model` no longer."""
        for name in self.encoders:
            delattr(self.model, name)

    def _part(self, name: str, *, own: bool = True, quantize: str | None = None) -> nn.Module:
        """A component beside the model, the autoencoder or a text encoder: with its weights, or drawn at random."""
        kind, device = _class_of(self.folder, name), next(self.model.parameters()).device
        if own and device.type != "meta":
            return loaded(kind, self.folder, name, self.options, quantize)
        with in_one_line("cannot be loaded", self.folder / name), device:
            made: nn.Module = kind(kind.config_class.from_pretrained(self.folder, subfolder=name))
            made = made.to(self.options.get("torch_dtype"))
        if quantize:
            as_shapes(made, quantize)
        return made

    @property
    def family(self) -> Family:
        """What training knows about such pipelines."""
        from superlora_cli.models.families import FAMILIES

        return FAMILIES[self.kind]

    @property
    def loras(self) -> tuple[str, ...]:
        """The components for which the pipeline's `load_lora_weights` reads LoRA; () if it has none."""
        import diffusers

        return tuple(getattr(getattr(diffusers, self.kind), "_lora_loadable_modules", ()))

    def place(self, module: str) -> tuple[str, str]:
        """The component that a module of `model` is in, and its name there in files."""
        if (part := part_named(module, self.encoders)) is None:
            return self.component, module
        return part, in_files(self.encoders[part], module.removeprefix(f"{part}."))

    @property
    def multiple(self) -> int:
        """Width and height of images must be multiples of this; most pipelines themselves demand 8."""
        return math.lcm(8, self.scale * self.family.multiple(self.model))

    @property
    def scheduler(self) -> Any:
        """The pipeline's own scheduler."""
        kind = _class_of(self.folder, "scheduler")
        with in_one_line("cannot be loaded", self.folder / "scheduler"):
            return kind.from_pretrained(self.folder, subfolder="scheduler")

    @property
    def tokenizer(self) -> tuple[Any, int]:
        """The tokenizer of the text encoder that reads most of a text, the last one, and how many tokens that is."""
        import diffusers

        encoders = [name for name in self.family.encoders if _index(self.folder)[name] != ABSENT]
        name = encoders[-1].replace("text_encoder", "tokenizer")
        with in_one_line("cannot be loaded", self.folder / name):
            found = _class_of(self.folder, name).from_pretrained(self.folder, subfolder=name)
        asked = inspect.signature(getattr(diffusers, self.kind).__call__).parameters.get("max_sequence_length")
        return found, found.model_max_length if asked is None else asked.default

    def pipeline(self) -> Any:
        """The whole pipeline, on the CPU, around this component.

        Raises:
            UsageError: a part of it is missing or damaged.
        """
        import diffusers

        given = {self.component: self.model, **self.encoders}
        for name in (VAE, *self.family.encoders):
            if name not in given and _index(self.folder)[name] != ABSENT:
                given[name] = self._part(name)
        with in_one_line("cannot be loaded", self.folder):
            found = getattr(diffusers, self.kind).from_pretrained(self.folder, **self.options, **given)
        found.set_progress_bar_config(disable=True)
        return found

    def set_down(self, pipeline: Any) -> None:
        """Move to memory what training does not need of a pipeline: its autoencoder and text encoders, unless they are
        adapted."""
        for name in (VAE, *self.family.encoders):
            part = getattr(pipeline, name)
            if part is not None and name not in self.encoders:
                part.to("cpu")


def placed(pipeline: Any, device: torch.device, *, offload: bool) -> Any:
    """A pipeline on a device; with `offload`, on a GPU, each part is there only while it works, and else in memory.
    Parts with quantised layers stay: they are small, and their adapter is in one of them."""
    offload = offload and device.type == "cuda"
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    staying = [name for name, part in parts.items() if not offload or any(map(is_packed, part.modules()))]
    for name in staying:
        move(parts[name], device)
    if not offload:
        return pipeline.to(device)
    in_turn = pipeline.model_cpu_offload_seq.split("->")
    pipeline.model_cpu_offload_seq = "->".join(name for name in in_turn if name not in staying)
    pipeline._exclude_from_cpu_offload = [*pipeline._exclude_from_cpu_offload, *staying]
    pipeline.enable_model_cpu_offload(device=device)
    return pipeline


@contextmanager
def in_one_line(what: str, where: Path | str, hint: str | None = AGAIN) -> Iterator[None]:
    """Inside, whatever the libraries of a pipeline's parts raise becomes an error of one line: "`what`: their message".

    Raises:
        UsageError: they raised something.
    """
    try:
        yield
    except (SuperLoraError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"{what}: {cause}", where=str(where), hint=hint) from None


def loaded(kind: Any, folder: Path, part: str, options: Mapping[str, Any], quantize: str | None = None) -> nn.Module:
    """A part of a pipeline with its weights, quantised if asked for; those that a file lacks are never drawn at random.

    Raises:
        UsageError: it cannot be loaded completely.
    """
    how = dict(options)
    if quantize:
        how.setdefault("torch_dtype", torch.float32)  # diffusers would take bfloat16
        library = importlib.import_module(kind.__module__.partition(".")[0])
        how |= settings(quantize, library, how["torch_dtype"])
    if not list((folder / part).glob(f"*.{how.get('variant')}.*")):
        how.pop("variant", None)  # not all parts have one
    if kind.__module__.startswith("transformers.") and "torch_dtype" in how:
        how["dtype"] = how.pop("torch_dtype")
    with in_one_line("cannot be loaded", folder / part):
        found, about = kind.from_pretrained(
            folder, subfolder=part, use_safetensors=True, output_loading_info=True, **how
        )
        if missing := sorted(about["missing_keys"]):
            raise ValueError(f"its files lack {len(missing):,} tensors, such as {missing[0]}")
    if quantize:
        move(found, torch.device("cpu"))  # diffusers may have quantised it on a GPU
        settled(found, quantize)
    return cast(nn.Module, found)


def _class_of(folder: Path, part: str) -> Any:
    """The class of a part, of diffusers or transformers; no other module is ever imported."""
    import diffusers
    import transformers

    with in_one_line("cannot be loaded", folder / part):
        library, name = _index(folder)[part]
        return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def is_pipeline(name: str) -> bool:
    """Whether `model.name` means a text-to-image pipeline.

    >>> is_pipeline("diffusers:runwayml/stable-diffusion-v1-5"), is_pipeline("diffusers")
    (True, False)
    """
    return name.startswith(PREFIX) or name in PIPELINES


def is_pipeline_folder(folder: Path) -> bool:
    """Whether a folder is a pipeline's."""
    return (folder / INDEX).is_file()


def pipeline_at(folder: Path) -> str | None:
    """The `model.name` of the pipeline in a folder, or of the one whose denoiser is there; None if it is neither.

    Raises:
        UsageError: its index is damaged.
    """
    from superlora_cli.models.families import FAMILIES

    if is_pipeline_folder(folder):
        return f"{PREFIX}{folder}"
    if is_pipeline_folder(folder.parent):
        kind = str(_index(folder.parent).get("_class_name"))
        if kind in FAMILIES and FAMILIES[kind].denoiser == folder.name:
            return f"{PREFIX}{folder.parent}"
    return None


def build_pipeline(section: ModelSection, *, image_size: int | None = None, weights: bool = True) -> PipelineBase:
    """Build a component of the pipeline that a recipe's `model` section names; arguments as for `models.build.build`.

    Raises:
        UsageError: an extra is missing, there is no such pipeline, it is of an unknown family, or it cannot be loaded.
    """
    if find_spec("transformers") is None:
        raise UsageError("text encoders need the library transformers", where=section.name, hint=EXTRA)
    from superlora_cli.models.families import FAMILIES

    hush()
    refuse_others(section.name, section.kwargs, (*ARGUMENTS, COMPONENT))
    check_section(section)
    options = with_dtype(section.kwargs, "torch_dtype")
    folder = _folder(section, weights=weights)
    index = _index(folder)
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        hint = did_you_mean(kind, FAMILIES) or "one of " + ", ".join(FAMILIES)
        raise UsageError(f"a {kind}, which cannot be trained", where=str(folder / INDEX), hint=hint)
    part, *beside = _trained(FAMILIES[kind], options.pop(COMPONENT, FAMILIES[kind].denoiser))
    if part == VAE and section.quantize:
        raise UsageError("does not apply to an autoencoder", where=KEY, hint="leave it out")
    _check_parts(folder, index, FAMILIES[kind].parts)
    own = section.pretrained and section.checkpoint is None
    maker, device = _class_of(folder, part), torch.device("cpu" if weights else "meta")
    with in_one_line("cannot be loaded", folder / part):
        config = maker.load_config(folder, subfolder=part)
        if not (weights and own):
            with device:
                model = maker.from_config(config).to(options.get("torch_dtype"))
    if weights and own:
        model = loaded(maker, folder, part, options, section.quantize)
    elif section.quantize:
        as_shapes(model, section.quantize)
    with in_one_line("cannot be read", folder / VAE / "config.json"):
        scale = FAMILIES[kind].scale(_config(folder / VAE / "config.json"))
        if not scale:
            raise ValueError("it has no layers")
    sample = config.get("sample_size") or SAMPLE
    size = image_size or int(sample if isinstance(sample, int) else sample[0]) * (1 if part == VAE else scale)
    if size % 8:
        raise UsageError(f"{size} is not a multiple of 8", where="data.image_size", hint="use a multiple of 8")
    arguments = {"pretrained_model_name_or_path": str(folder), "subfolder": part, **options}
    base = PipelineBase(
        model, f"diffusers.{index[part][1]}.from_pretrained", arguments, size, HALF, HALF,
        task="autoencoder" if part == VAE else "text-to-image",
        by_timm=False, folder=folder, component=part, kind=kind, scale=scale, options=options,
        quantize=section.quantize,
    )  # fmt: skip
    for name in beside:
        base.set_beside(name, own=own)
    if weights and section.checkpoint:
        load_weights(model, Path(section.checkpoint))
    return base


def _trained(family: Family, asked: Any) -> list[str]:
    """The components that `model.kwargs.component` names, one or several; text encoders come after the denoiser."""
    names = [str(name) for name in (asked if isinstance(asked, list) else [asked])]
    where, alone = f"model.kwargs.{COMPONENT}", [family.denoiser, *([VAE] if family.autoencodes else [])]
    known = [*alone, *family.encoders]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or "one of " + ", ".join(known)
            raise UsageError(f"no component '{name}' that can be trained", where=where, hint=hint)
    names.sort(key=known.index)
    together = names[:1] == [family.denoiser] and VAE not in names and len({*names}) == len(names)
    if not together and names != [VAE]:
        hint = " or ".join([*alone, f"[{family.denoiser}, {family.encoders[0]}]"])
        raise UsageError(f"cannot train {' with '.join(names) or 'nothing'}", where=where, hint=hint)
    return names


def _folder(section: ModelSection, *, weights: bool) -> Path:
    """The folder of a pipeline: a local one, a shipped one, or that of the hub's cache, downloaded if necessary."""
    if section.name in PIPELINES:
        return ASSETS / section.name
    name = section.name.removeprefix(PREFIX)
    if Path(name).is_dir():
        return Path(name)
    where, local = f"model.name={section.name}", f"{PREFIX}FOLDER is a pipeline on this machine"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError("no such folder", where=where, hint=local)
    repository, _, revision = name.partition("@")
    with cache_if_unreachable() as answers:
        try:
            return Path(_downloaded(repository, revision or None, section.kwargs.get("variant"), weights=weights))
        except Exception as error:  # of the hub's library, requests, or the operating system
            cause = str(error).strip().partition("\n")[0] or type(error).__name__
            if not answers:
                cause = f"not in the cache {cache_folder()}, and the hub cannot be reached"
            raise UsageError(cause, where=where, hint=local) from None


def _downloaded(repository: str, revision: str | None, variant: str | None, *, weights: bool) -> str:
    if weights:
        from diffusers import DiffusionPipeline

        found = DiffusionPipeline.download(repository, revision=revision, variant=variant, use_safetensors=True)
        return str(found)
    from huggingface_hub import snapshot_download

    return str(snapshot_download(repository, revision=revision, allow_patterns=["*.json"]))


def _index(folder: Path) -> dict[str, Any]:
    return _config(folder / INDEX, "give a folder written by a pipeline's save_pretrained")


def _config(file: Path, hint: str | None = None) -> dict[str, Any]:
    if not file.is_file():
        raise UsageError(f"holds no {file.name}", where=str(file.parent), hint=hint)
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(file), hint=hint) from None


def _check_parts(folder: Path, index: Mapping[str, Any], parts: Iterable[str]) -> None:
    """Refuse a pipeline that lacks a part; an index may say that there is none, as for a text encoder left out."""
    for part in parts:
        entry = index.get(part)
        if not isinstance(entry, list) or len(entry) != 2:
            hint = "a pipeline of another class, or a damaged one"
            raise UsageError(f"names no {part}", where=str(folder / INDEX), hint=hint)
        if entry != ABSENT and not (folder / part).is_dir():
            raise UsageError(f"holds no {part}", where=str(folder), hint=AGAIN)


def hush() -> None:
    """No bars and warnings of diffusers and transformers: what users should know, superlora says."""
    import diffusers
    import transformers

    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # every version < 1 knows it
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # FLUX's norms under autocast

    for name in ("torch.utils._pytree", "bitsandbytes"):  # of libraries that these import where they are installed
        logging.getLogger(name).setLevel(logging.ERROR)
    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
