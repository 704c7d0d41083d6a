"""Load the weights of a base from the user's own file, in any of the usual forms.

Wrappers and prefixes are stripped (`state_dict`, `model_ema`, `teacher`, `module.`, `backbone.` …), names of other
libraries become those of the original checkpoints, and timm's filter for the model does the rest (it also resamples
position embeddings). Then every tensor of the model must be present, with the right shape.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from superlora_cli.errors import MismatchError, UsageError, first_line
from superlora_cli.models.foreign_names import original_names
from superlora_cli.models.heads import classifier_tensors, classifiers
from superlora_cli.weights.reading import open_weights

Filter = Callable[..., Mapping[str, Tensor]]  # (state dict, model) → state dict
AROUND = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "teacher", "module", "student")  # first found
NAMED = 4  # tensors named in a note


def load_weights(model: nn.Module, path: Path, *, new_head: bool = False, filter_: Filter | None = None) -> str | None:
    """Load a base's weights from a safetensors file, shards with an index, or a torch file; a new head keeps its
    initial values.

    Args:
        filter_: converts other forms of the weights to that of the model; for timm models, timm's filter.

    Returns:
        What was stripped, resampled and left out, in one line; None if nothing was.

    Raises:
        UsageError: the file cannot be read. MismatchError: names or shapes differ; it names the first one.
    """
    said: list[str] = []
    state, own = _read(path, said), dict(model.state_dict())
    head = classifier_tensors(model) if new_head else {}
    if not _fit(state, own, head):
        state = _without_prefix(state, own, said)
    if not _fit(state, own, head):
        state = _converted(original_names(state, said), model, filter_, path, said)
    state = _without_others(state, own, classifiers(model) if new_head else (), said)
    state |= {name: own[name] for name in head}
    check_shapes(_shapes(own), _shapes(state), where=str(path))
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1 and dtypes != {
        torch.float32
    }:  # weights stored in bfloat16 stay so: the base is identified by its bytes
        model.to(dtypes.pop())
        model.register_forward_pre_hook(_in_own_dtype)
    model.load_state_dict(state)
    return f"{path}: {'; '.join(said)}" if said else None


def is_safetensors(path: Path) -> bool:
    """Whether a path is safetensors: a file, an index of shards, or a folder with either."""
    return path.suffix in (".safetensors", ".json") or path.is_dir()


def check_shapes(own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Refuse tensors of a file (`theirs`) that are not those of a model (`own`).

    Raises:
        MismatchError: names the first tensor, in model order, whose name or shape differs.
    """
    for name in (*own, *theirs):
        if own.get(name) != theirs.get(name):
            found = [list(shapes[name]) if name in shapes else "missing" for shapes in (theirs, own)]
            raise MismatchError(
                f"{name} is {found[0]} in the file and {found[1]} in the model",
                where=where,
                hint="use weights of the same architecture",
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: Iterable[str]) -> bool:
    """Whether the tensors are those of the model, ignoring the head."""
    mine, theirs = _shapes(own), _shapes(state)
    return all(mine.get(name) == theirs.get(name) for name in (mine | theirs).keys() - set(head))


def _read(path: Path, said: list[str]) -> dict[str, Tensor]:
    if is_safetensors(path):
        with open_weights(path) as weights:
            return {name: weights.tensor(name) for name in weights.names}
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm and others store their arguments in it
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), hint="give the weights of the base") from None
    except Exception as error:  # torch raises a dozen kinds for a broken or unsafe file
        cause = first_line(error)
        raise UsageError(f"not a readable torch file: {cause}", where=str(path), hint="use safetensors") from None
    taken = []
    while isinstance(found, Mapping) and (key := next((k for k in AROUND if isinstance(found.get(k), Mapping)), None)):
        taken.append(key)
        found = found[key]
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)} if _named(found) else {}
    if not state:
        raise UsageError("holds no state_dict", where=str(path), hint="expected a mapping of names to tensors")
    if taken:
        said.append(f"took '{'.'.join(taken)}'")
    return state


def _named(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(name, str) for name in found)


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor], said: list[str]) -> dict[str, Tensor]:
    """The tensors under the prefix that, when stripped, gives most names of the model, if it gives at least half."""
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        prefixes.update(".".join([*parts[:at], ""]) for at in range(len(parts)) if ".".join(parts[at:]) in own)
    averaged = re.compile("ema|teacher")  # of two copies, prefer the averaged one
    prefix, count = max(prefixes.items(), key=lambda item: (item[1], bool(averaged.search(item[0]))), default=("", 0))
    if not prefix or 2 * count < len(own):
        return state
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    said.append(f"stripped '{prefix}'")
    if others := [name for name in state if not name.startswith(prefix)]:
        said.append(f"left out {_some(others)}")
    return inside


def _converted(
    state: dict[str, Tensor], model: nn.Module, filter_: Filter | None, path: Path, said: list[str]
) -> dict[str, Tensor]:
    if filter_ is None:
        return state
    before = _shapes(state)
    try:
        found = dict(filter_(state, model))
    except Exception as error:  # given the weights of another model, a filter may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "use weights of the same architecture"
        raise MismatchError(f"timm cannot convert the weights: {cause}", where=str(path), hint=hint) from None
    resampled = [
        f"{name} from {list(before[name])} to {list(tensor.shape)}"
        for name, tensor in found.items()
        if before.get(name, tensor.shape) != tensor.shape
    ]
    if resampled:
        said.append(f"resampled {_some(resampled)}")
    return found


def _without_others(
    state: dict[str, Tensor], own: Mapping[str, Tensor], heads: Iterable[str], said: list[str]
) -> dict[str, Tensor]:
    """Without tensors for which the model has no part (heads of other tasks, mask tokens, a text tower), and without
    `heads`.

    An extra tensor of an existing part, such as a thirteenth block, stays, so that it is refused.
    """
    parts = {name.partition(".")[0] for name in own if "." in name}
    replaced = tuple(f"{head}." for head in heads)
    others = [
        name for name in state if name.startswith(replaced) or (name not in own and name.partition(".")[0] not in parts)
    ]
    if others:
        said.append(f"left out {_some(others)}")
    return {name: tensor for name, tensor in state.items() if name not in others}


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _in_own_dtype(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert images, which come first, to the dtype of the base's weights, unless autocast does so; tokens stay."""
    first = next(iter(inputs), None)
    if not torch.is_tensor(first) or not first.is_floating_point() or torch.is_autocast_enabled(first.device.type):
        return inputs
    return first.to(next(model.parameters()).dtype), *inputs[1:]
