"""Target patterns on a checkpoint without its model, by the names and shapes in its files.

The elements of an adapter follow the order of the model, which files do not keep. It is found by trying orders until
one matches the adapter's digest of its targets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice, permutations, product
from typing import TYPE_CHECKING

from superlora_cli.adapter import store
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.adapter.targets import Target, block_of
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.patterns import CLASSIFIERS, Weight, expand

if TYPE_CHECKING:
    from torch import nn

TRIED = 10_000  # most orders to try
WEIGHT = ".weight"


def targets_in(shapes: Mapping[str, tuple[int, ...]], stored: StoredAdapter, where: str) -> list[Target]:
    """The targets that an adapter was trained on, in the order of training.

    Args:
        shapes: shape of every tensor, by name, in the order of the file.
        where: the file, for errors.

    Raises:
        MismatchError: a pattern matches no weight, or the matches do not have the adapter's names, slices and shapes.
    """
    weights = weights_in(shapes)
    try:
        found = expand(weights, stored.patterns, without=stored.head)
    except UsageError as error:
        raise MismatchError(error.message, where=where, hint=error.hint) from None
    for own in (found, expand(weights, stored.patterns, without=stored.head, earlier=True)):
        for key in islice(_orders([target.module for target in own]), TRIED):
            ordered = sorted(own, key=lambda target, key=key: (key(target.module), target.start))  # type: ignore[misc]
            if store.digest_targets(ordered) == stored.targets_digest:
                return ordered
    raise MismatchError(
        f"the {len(found)} weights that match the adapter's patterns are not the ones it was trained on",
        where=where,
        hint="use a checkpoint of the same architecture, with the names of its modules",
    )


def weights_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight]:
    """The matrices and kernels among the tensors of a checkpoint, by module name, without embeddings.

    >>> weights_in({"token_embed.weight": (9, 4), "q.weight": (4, 4), "q.bias": (4,)})
    {'q': Weight(shape=(4, 4), mixed='', classifies=False, rows=())}
    """
    return {
        name.removesuffix(WEIGHT): Weight(shape)
        for name, shape in shapes.items()
        if name.endswith(WEIGHT) and len(shape) >= 2 and "embed" not in name.split(".")[-2]
    }


def witnesses(shapes: Mapping[str, tuple[int, ...]], replaced: Collection[str]) -> list[Target]:
    """The weights that identify a base if none is adapted: all except the classifier's and those `replaced`.

    >>> [target.name for target in witnesses({"v.weight": (4, 4), "q.weight": (4, 4), "head.weight": (2, 4)}, ())]
    ['q', 'v']
    """
    others = {name: shape for name, shape in sorted(shapes.items()) if name not in replaced}
    found = {name: weight.shape for name, weight in weights_in(others).items() if name not in CLASSIFIERS}
    return [Target(name, 0, shape[0], shape, True) for name, shape in found.items()]


def digest_base(model: nn.Module, targets: Sequence[Target], beside: Collection[str]) -> tuple[str, str]:
    """(SHA-256, dtype) of the weights that identify a base: its targets or, without targets, the `witnesses`.

    Args:
        beside: names of the tensors in the adapter file other than factors, such as a head.
    """
    if targets:
        return store.digest_base(model, targets)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return store.digest_base(model, witnesses(shapes, {*beside, *classifier_parameters(model)}))


Key = Callable[[str], tuple[object, ...]]


def _orders(modules: Sequence[str]) -> Iterator[Key]:
    """Orders that a model may have: that of the file, then blocks by number, with every order of layers inside.

    Within a block (q, k, v, o) and among stacks of blocks (encoder, decoder), files are sorted by name but models are
    not.
    """
    place = {module: index for index, module in enumerate(modules)}
    yield lambda module: (place[module],)
    parts = {module: _parts(module) for module in modules}
    stacks = list(dict.fromkeys(stack for stack, _, _ in parts.values()))
    layers = list(dict.fromkeys(layer for _, _, layer in parts.values()))
    for one, other in product(permutations(stacks), permutations(layers)):

        def key(module: str, one: Sequence[str] = one, other: Sequence[str] = other) -> tuple[object, ...]:
            stack, numbers, layer = parts[module]
            return (one.index(stack), numbers, other.index(layer))

        yield key


def _parts(module: str) -> tuple[str, tuple[tuple[int, str], ...], str]:
    """(Stack, numbers and names down to the block, layer inside the block).

    >>> _parts("model.layers.12.self_attn.q_proj")
    ('model.layers', ((12, ''),), '.self_attn.q_proj')
    """
    block = block_of(module)
    words = block.split(".")
    first = next((index for index, word in enumerate(words) if word.isdigit()), len(words))
    numbers = tuple((int(word), "") if word.isdigit() else (-1, word) for word in words[first:])
    return ".".join(words[:first]), numbers, module.removeprefix(block)
