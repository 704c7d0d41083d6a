"""Text-to-image pipelines as bases: `diffusers:FOLDER`, `diffusers:NAME@REVISION` of the hub, or a shipped one.

The base is the pipeline's denoiser alone, or with `model.kwargs.component: vae` its autoencoder; the other parts are
loaded when they are needed.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superlora_cli.errors import SuperLoraError, UsageError, did_you_mean
from superlora_cli.models.arguments import refuse_others
from superlora_cli.models.base import Base
from superlora_cli.models.embedded import ASSETS, PIPELINES
from superlora_cli.models.hub import cache_folder, cache_if_unreachable
from superlora_cli.models.loading import load_weights

if TYPE_CHECKING:
    from superlora_cli.models.families.family import Family
    from superlora_cli.recipe.schema import ModelSection

PREFIX, INDEX = "diffusers:", "model_index.json"
HALF = (0.5, 0.5, 0.5)  # mean and standard deviation: [0, 1] becomes [−1, 1]
DTYPES = ("float32", "bfloat16", "float16")
EXTRA = "pip install 'superlora-cli[text-to-image]'"
AGAIN = "copy or download the pipeline again"
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
    """

    folder: Path
    component: str
    kind: str
    scale: int
    options: Mapping[str, Any]

    @property
    def family(self) -> Family:
        """What training knows about such pipelines."""
        from superlora_cli.models.families import FAMILIES

        return FAMILIES[self.kind]

    @property
    def multiple(self) -> int:
        """Width and height of images must be multiples of this; most pipelines themselves demand 8."""
        return math.lcm(8, self.scale * self.family.multiple(self.model))

    @property
    def scheduler(self) -> Any:
        """The pipeline's own scheduler."""
        import diffusers

        with in_one_line("cannot be loaded", self.folder / "scheduler"):
            name = _index(self.folder)["scheduler"][1]
            return getattr(diffusers, name).from_pretrained(self.folder, subfolder="scheduler")

    def pipeline(self) -> Any:
        """The whole pipeline, on the CPU, around this component.

        Raises:
            UsageError: a part of it is missing or damaged.
        """
        import diffusers

        given = {self.component: self.model}
        with in_one_line("cannot be loaded", self.folder):
            found = getattr(diffusers, self.kind).from_pretrained(self.folder, **self.options, **given)
        found.set_progress_bar_config(disable=True)
        return found


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


def is_pipeline(name: str) -> bool:
    """Whether `model.name` means a text-to-image pipeline.

    >>> is_pipeline("diffusers:runwayml/stable-diffusion-v1-5"), is_pipeline("diffusers")
    (True, False)
    """
    return name.startswith(PREFIX) or name in PIPELINES


def build_pipeline(section: ModelSection, *, image_size: int | None = None, weights: bool = True) -> PipelineBase:
    """Build a component of the pipeline that a recipe's `model` section names; arguments as for `models.build.build`.

    Raises:
        UsageError: an extra is missing, there is no such pipeline, it is of an unknown family, or it cannot be loaded.
    """
    if find_spec("transformers") is None:
        raise UsageError("text encoders need the library transformers", where=section.name, hint=EXTRA)
    import diffusers

    from superlora_cli.models.families import FAMILIES

    hush()
    refuse_others(section.name, section.kwargs, (*ARGUMENTS, COMPONENT))
    options = _options(section)
    folder = _folder(section, weights=weights)
    index = _index(folder)
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES:
        hint = did_you_mean(kind, FAMILIES) or "one of " + ", ".join(FAMILIES)
        raise UsageError(f"a {kind}, which cannot be trained", where=str(folder / INDEX), hint=hint)
    part = options.pop(COMPONENT, FAMILIES[kind].denoiser)
    if part not in (known := (FAMILIES[kind].denoiser, VAE)):
        hint = did_you_mean(str(part), known) or "one of " + ", ".join(known)
        raise UsageError(f"no component '{part}' that can be trained", where="model.kwargs.component", hint=hint)
    _check_parts(folder, index, FAMILIES[kind].parts)
    own = section.pretrained and section.checkpoint is None
    with in_one_line("cannot be loaded", folder / part):
        maker = getattr(diffusers, index[part][1])
        config = maker.load_config(folder, subfolder=part)
        if weights and own:
            model = maker.from_pretrained(folder, subfolder=part, use_safetensors=True, **options)
        else:
            with torch.device("cpu" if weights else "meta"):
                model = maker.from_config(config).to(options.get("torch_dtype"))
    if weights and section.checkpoint:
        load_weights(model, Path(section.checkpoint))
    with in_one_line("cannot be read", folder / VAE / "config.json"):
        scale = FAMILIES[kind].scale(_config(folder / VAE / "config.json"))
    sample = config.get("sample_size") or SAMPLE
    size = image_size or int(sample if isinstance(sample, int) else sample[0]) * (1 if part == VAE else scale)
    if size % 8:
        raise UsageError(f"{size} is no multiple of 8", where="data.image_size", hint="use a multiple of 8")
    arguments = {"pretrained_model_name_or_path": str(folder), "subfolder": part, **options}
    return PipelineBase(
        model, f"diffusers.{index[part][1]}.from_pretrained", arguments, size, HALF, HALF,
        task="autoencoder" if part == VAE else "text-to-image",
        by_timm=False, folder=folder, component=part, kind=kind, scale=scale, options=options,
    )  # fmt: skip


def _options(section: ModelSection) -> dict[str, Any]:
    options = dict(section.kwargs)
    if "torch_dtype" in options:
        if options["torch_dtype"] not in DTYPES:
            hint = "one of " + ", ".join(DTYPES)
            raise UsageError(f"unknown dtype {options['torch_dtype']!r}", where="model.kwargs.torch_dtype", hint=hint)
        options["torch_dtype"] = getattr(torch, options["torch_dtype"])
    return options


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
        if entry != [None, None] and not (folder / part).is_dir():
            raise UsageError(f"holds no {part}", where=str(folder), hint=AGAIN)


def hush() -> None:
    """No bars and warnings of diffusers and transformers: what users should know, superlora says."""
    import diffusers
    import transformers

    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)  # every version < 1 knows it
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # FLUX's norms under autocast

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
