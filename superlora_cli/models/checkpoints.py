"""Target patterns on a checkpoint alone: from the names and shapes in its files, without the model.

Files do not keep the order of a model, which the elements of an adapter follow. The adapter's digest of its targets
says which order it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, permutations, product
from typing import TYPE_CHECKING

from superlora_cli.adapter import store
from superlora_cli.adapter.targets import Target, block_of
from superlora_cli.errors import MismatchError, UsageError
from superlora_cli.models.heads import classifier_parameters
from superlora_cli.models.patterns import CLASSIFIERS, Weight, expand

if TYPE_CHECKING:
    from torch import nn

TRIED = 10_000  # orders
WEIGHT = ".weight"


def targets_in(shapes: Mapping[str, tuple[int, ...]], patterns: Iterable[str], digest: str, where: str) -> list[Target]:
    """The targets that an adapter was trained on, in the order that it was trained in.

    Args:
        shapes: of every tensor, by name, in the order of the file.
        patterns, digest: the adapter's.
        where: the file, for errors.

    Raises:
        MismatchError: a pattern matches no weight, or what they match has not the adapter's names, slices and shapes.
    """
    try:
        found = expand(weights_in(shapes), patterns)
    except UsageError as error:
        raise MismatchError(error.message, where=where, hint=error.hint) from None
    for key in islice(_orders([target.module for target in found]), TRIED):
        ordered = sorted(found, key=lambda target, key=key: (key(target.module), target.start))  # type: ignore[misc]
        if store.digest_targets(ordered) == digest:
            return ordered
    raise MismatchError(
        f"the {len(found)} weights that the adapter's patterns name here are not the ones it was trained on",
        where=where,
        hint="a checkpoint of the same architecture, with the names that its modules have",
    )


def weights_in(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Weight]:
    """The matrices and kernels among the tensors of a checkpoint, by module name, without embeddings.

    >>> weights_in({"token_embed.weight": (9, 4), "q.weight": (4, 4), "q.bias": (4,)})
    {'q': Weight(shape=(4, 4), mixed='', classifies=False)}
    """
    return {
        name.removesuffix(WEIGHT): Weight(shape)
        for name, shape in shapes.items()
        if name.endswith(WEIGHT) and len(shape) >= 2 and "embed" not in name.split(".")[-2]
    }


def witnesses(shapes: Mapping[str, tuple[int, ...]], replaced: Collection[str]) -> list[Target]:
    """The weights by which a base is known where none is adapted: all but the classifier's and those `replaced`.

    >>> [target.name for target in witnesses({"v.weight": (4, 4), "q.weight": (4, 4), "head.weight": (2, 4)}, ())]
    ['q', 'v']
    """
    kept = {name: shape for name, shape in sorted(shapes.items()) if name not in replaced}
    found = {name: weight.shape for name, weight in weights_in(kept).items() if name not in CLASSIFIERS}
    return [Target(name, 0, shape[0], shape, True) for name, shape in found.items()]


def digest_base(model: nn.Module, targets: Sequence[Target], beside: Collection[str]) -> tuple[str, str]:
    """(SHA-256, dtype) of what tells a base from others: its targets, or where there are none the `witnesses`.

    Args:
        beside: names of the tensors that the adapter brings, a head's among them.
    """
    if targets:
        return store.digest_base(model, targets)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return store.digest_base(model, witnesses(shapes, {*beside, *classifier_parameters(model)}))


Key = Callable[[str], tuple[object, ...]]


def _orders(modules: Sequence[str]) -> Iterator[Key]:
    """Orders that a model may have: the file's, then blocks by their numbers, with every order of what is in them.

    Within a block (q, k, v, o), and among stacks of blocks (encoder, decoder), files are sorted by name and models
    are not.
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
    """(Stack, numbers and names down to the block, layer inside of the block).

    >>> _parts("model.layers.12.self_attn.q_proj")
    ('model.layers', ((12, ''),), '.self_attn.q_proj')
    """
    block = block_of(module)
    words = block.split(".")
    first = next((index for index, word in enumerate(words) if word.isdigit()), len(words))
    numbers = tuple((int(word), "") if word.isdigit() else (-1, word) for word in words[first:])
    return ".".join(words[:first]), numbers, module.removeprefix(block)
