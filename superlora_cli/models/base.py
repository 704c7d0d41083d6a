"""Base models: any of timm's, and the embedded ones that ship with superlora."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from superlora_cli.errors import MismatchError, UsageError, did_you_mean
from superlora_cli.models.hub import cache_folder, cache_if_unreachable
from superlora_cli.models.parts import classifier_parameters
from superlora_cli.weights.reading import open_weights

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import ModelSection

UNETS = ("cfg_unet", "diffusers")  # bases that predict noise
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Embedded:
    """A shipped base: an architecture, the arguments that size it, and its weights in the package."""

    architecture: str
    arguments: Mapping[str, Any]
    classes: int
    weights: str
    image_size: int = 16  # S, the side in pixels


EMBEDDED = {
    "glyphs_vit": Embedded(
        "vit_tiny_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
        classes=10,
        weights="glyphs_vit.safetensors",
    ),
    "digits_classifier": Embedded(
        "resnet18",
        {"layers": (1, 1, 1, 1), "channels": (32, 48, 64, 96), "stem_type": "deep", "stem_width": 16},
        classes=10,
        weights="digits_classifier.safetensors",
    ),
    "glyphs_unet": Embedded(
        "cfg_unet",
        {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "image_size": 16, "groups": 8},
        classes=10,
        weights="glyphs_unet.safetensors",
    ),
}


@dataclass(frozen=True)
class Base:
    """A built base model and what its images must look like.

    Attributes:
        model: the module, in training precision, on the CPU.
        architecture, arguments: `timm.create_model(architecture, **arguments)` builds the same module, or for a
            U-Net the class `architecture(**arguments)`.
        image_size: side in pixels; `mean`, `std`: of the normalisation, per channel, for images in [0, 1].
        trained_head: parameter names of a new classifier, which is trained beside the adapter.
        task: what it can do.
    """

    model: nn.Module
    architecture: str
    arguments: Mapping[str, Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    trained_head: tuple[str, ...] = field(default=())
    task: Literal["classification", "diffusion"] = "classification"

    @property
    def call(self) -> str:
        """The line of Python that builds this model."""
        words = [f"{key}={value!r}" for key, value in self.arguments.items()]
        if self.task == "diffusion":
            return f"{self.architecture}({', '.join(words)})"
        return f"timm.create_model({', '.join([repr(self.architecture), *words])})"

    def loading(self, weights: Path) -> str:
        """The Python that builds it with the weights of a safetensors file."""
        if self.task == "diffusion":
            return f"model = {self.call}; model.load_state_dict(safetensors.torch.load_file({str(weights)!r}))"
        return f"{self.call[:-1]}, checkpoint_path={str(weights)!r})"


def build(section: ModelSection, *, classes: int | None, image_size: int | None = None, weights: bool = True) -> Base:
    """Build the base that a recipe's `model` section asks for.

    Args:
        section: name, pretrained, head, checkpoint, kwargs.
        classes: number of classes of the data, needed for a new head.
        image_size: the data's, if the recipe says one.
        weights: False builds shapes only (on the meta device): no download, no memory.

    Raises:
        UsageError: unknown name, arguments that timm (or a U-Net) refuses, weights that cannot be had.
    """
    embedded = EMBEDDED.get(section.name)
    if section.name in UNETS or (embedded and embedded.architecture in UNETS):
        from superlora_cli.models.unets import build_unet

        return build_unet(section, image_size=image_size, weights=weights)
    architecture = embedded.architecture if embedded else section.name
    arguments = {**(embedded.arguments if embedded else {}), **section.kwargs}
    if section.head == "new":
        if classes is None:
            raise UsageError("the number of classes is not known", where="data.num_classes", hint="set it")
        arguments["num_classes"] = classes
    elif embedded:
        arguments["num_classes"] = embedded.classes
    fetch = section.pretrained and not embedded and section.checkpoint is None and weights
    model = _create(section.name, architecture, arguments, fetch=fetch, meta=not weights)
    if weights and section.checkpoint is not None:
        load_weights(model, Path(section.checkpoint), new_head=section.head == "new")
    elif weights and embedded and section.pretrained:
        load_weights(model, ASSETS / embedded.weights, new_head=section.head == "new")
    if not isinstance(section.head, str):
        _select_rows(model, section.head.select)
        arguments["num_classes"] = len(section.head.select)
    config = resolve_data_config(model=model)
    usual = embedded.image_size if embedded else config["input_size"][-1]
    size = image_size or arguments.get("img_size") or usual
    new = classifier_parameters(model) if section.head == "new" else ()
    return Base(model, architecture, arguments, int(size), tuple(config["mean"]), tuple(config["std"]), new)


def load_weights(model: nn.Module, path: Path, *, new_head: bool = False) -> None:
    """Load a base's weights from a safetensors file, shards with an index or a torch file; a new head stays as it was
    initialised.

    Raises:
        UsageError: the file cannot be read. MismatchError: names or shapes differ; names the first one.
    """
    if is_safetensors(path):
        with open_weights(path) as weights:
            state = {name: weights.tensor(name) for name in weights.names}
    else:
        state = _read_torch(path)
    own = dict(model.state_dict())
    if new_head:
        for name in classifier_parameters(model):
            state[name] = own[name]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes({name: tuple(tensor.shape) for name, tensor in own.items()}, shapes, where=str(path))
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1 and dtypes != {torch.float32}:  # stored in bfloat16 it stays so: its bytes are its identity
        model.to(dtypes.pop())
        model.register_forward_pre_hook(_in_own_dtype)
    model.load_state_dict(state)


def _in_own_dtype(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Images in the dtype of a base's weights, where autocast does not see to that."""
    images, *others = inputs
    if torch.is_autocast_enabled(images.device.type):
        return inputs
    return images.to(next(model.parameters()).dtype), *others


def is_safetensors(path: Path) -> bool:
    """Whether a path means safetensors: a file, an index of shards, or a folder with either."""
    return path.suffix in (".safetensors", ".json") or path.is_dir()


def check_shapes(own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Refuse tensors of a file (`theirs`) that are not those of a model (`own`).

    Raises:
        MismatchError: names the first, in the model's order, whose name or shape differs.
    """
    for name in (*own, *theirs):
        if own.get(name) != theirs.get(name):
            found = [list(shapes[name]) if name in shapes else "missing" for shapes in (theirs, own)]
            raise MismatchError(
                f"{name} is {found[0]} in the file and {found[1]} in the model",
                where=where,
                hint="weights of the same architecture",
            )


def _create(name: str, architecture: str, arguments: Mapping[str, Any], *, fetch: bool, meta: bool) -> nn.Module:
    if ":" not in architecture and architecture.partition(".")[0] not in timm.list_models():
        hint = did_you_mean(architecture, [*EMBEDDED, *timm.list_models()]) or "superlora ls models"
        raise UsageError(f"unknown model '{name}'", where="model.name", hint=hint)
    remote = fetch or architecture.startswith("hf-hub:")
    reachable = True
    try:
        with (
            cache_if_unreachable() if remote else nullcontext(True) as reachable,
            torch.device("meta" if meta else "cpu"),
        ):
            model: nn.Module = timm.create_model(architecture, pretrained=fetch, **arguments)
    except TypeError as error:
        raise UsageError(f"timm refuses the arguments of {architecture}: {error}", where="model.kwargs") from None
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if architecture.startswith("local-dir:"):
            hint = "a folder with config.json and model.safetensors, as timm saves them"
            raise UsageError(cause, where=f"model.name={name}", hint=hint) from None
        if not reachable:
            cause = f"not in the cache {cache_folder()}, and the hub cannot be reached"
        if remote:
            hint = "go online once, copy a cache that has it (HF_HOME), or set model.checkpoint=FILE"
            raise UsageError(f"{architecture}: {cause}", where="model.name", hint=hint) from None
        raise UsageError(f"cannot build {architecture}: {error}", where="model.kwargs") from None
    return model


def _select_rows(model: nn.Module, rows: list[int]) -> None:
    """Replace the classifier by `rows` of it, in that order: (1000, d) → (len(rows), d)."""
    classifier = model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear) or max(rows) >= classifier.out_features or min(rows) < 0:
        size = getattr(classifier, "out_features", None)
        raise UsageError(f"rows {rows} of a classifier with {size}", where="model.head.select")
    chosen = nn.Linear(classifier.in_features, len(rows), bias=classifier.bias is not None, device="meta")
    chosen.weight = nn.Parameter(classifier.weight.detach()[rows].clone())
    if classifier.bias is not None:
        chosen.bias = nn.Parameter(classifier.bias.detach()[rows].clone())
    name = next(name for name, module in model.named_modules() if module is classifier)
    model.set_submodule(name, chosen)
    model.num_classes = len(rows)  # type: ignore[assignment]


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), hint="weights of the base") from None
    except Exception as error:  # torch raises a dozen kinds for a broken or unsafe file
        cause = str(error).splitlines()[0]
        raise UsageError(f"not a readable torch file: {cause}", where=str(path), hint="use safetensors") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError("holds no state_dict", where=str(path), hint="a mapping of names to tensors")
    return state
