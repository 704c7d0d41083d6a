"""The multi-scale intrinsic distance of two sets of features (Tsitsulin et al. 2020, arXiv:1905.11141), by piq.

It compares the heat traces of two nearest-neighbour graphs, each estimated from random vectors. The traces depend on
the number of points: 300 and 1,200 images of one distribution were eight times as far apart as two sets of 700. So
both sets are cut to the same size. The result is noisy, and only meaningful as a mean over seeds, compared with the
distance between two halves of one set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

K = 5  # neighbours in the graph
STEPS, VECTORS = 10, 100  # of Lanczos' method
LEAST = 2 * (STEPS + 2)  # fewest images, so that half of them is enough for Lanczos
TEMPERATURES = np.logspace(-1, 1, 256, dtype=np.float32)


def is_installed() -> bool:
    """Whether piq (the extra `msid`) is installed."""
    try:
        import piq.msid  # noqa: F401
    except ImportError:
        return False
    return True


def msid(one: Tensor, other: Tensor, seeds: Sequence[int], most: int) -> tuple[float, float]:
    """MSID of the same number of each, at most `most`: mean and standard deviation over seeds, each with its own cut.

    For sets that need no cut, every seed gives the same as `piq.MSID()` after `numpy.random.seed(seed)`.

    Args:
        one, other: features (n, d) and (m, d).
    """
    count = min(len(one), len(other), most)
    graphs = [_graphs(features, count) for features in (one, other)]
    found = [_distance([graph(seed) for graph in graphs], seed) for seed in seeds]
    return float(np.mean(found)), float(np.std(found))


def noise_floor(features: Tensor, seeds: Sequence[int], count: int) -> tuple[float, float]:
    """MSID of two disjoint random parts of one set (n, d), mean and standard deviation: its value for no difference.

    Args:
        count: images in each part, at most n/2.
    """
    count, found = min(count, len(features) // 2), []
    for seed in seeds:
        order = np.random.RandomState(seed).permutation(len(features))
        parts = order[:count], order[count : 2 * count]
        found.append(_distance([_graph(features[part].numpy()) for part in parts], seed))
    return float(np.mean(found)), float(np.std(found))


def _graphs(features: Tensor, count: int) -> Callable[[int], Any]:
    """A function from a seed to the graph of `count` points; the graph of the whole set is built only once."""
    if len(features) == count:
        graph = _graph(features.numpy())
        return lambda seed: graph
    return lambda seed: _graph(
        features[np.random.RandomState(seed).choice(len(features), count, replace=False)].numpy()
    )


def _distance(graphs: Sequence[Any], seed: int) -> float:
    with _seeded(seed), np.errstate(all="ignore"):  # a graph of equal images gives a result that is not finite
        one, other = (_descriptor(graph) for graph in graphs)
        weight = np.exp(-2 * (TEMPERATURES + 1 / TEMPERATURES))
        return float(np.amax(weight * np.abs(one - other)))


def _descriptor(laplacian: Any) -> np.ndarray:
    """The normalised heat trace at every temperature, (256,)."""
    from piq.msid import NORMALIZATION, _normalize_msid, _slq_red_var

    trace = _slq_red_var(laplacian, STEPS, VECTORS, TEMPERATURES, False)
    normalised: np.ndarray = _normalize_msid(trace, "empty", laplacian.shape[0], K, TEMPERATURES) * NORMALIZATION
    return normalised


def _graph(points: np.ndarray) -> Any:
    """The normalised Laplacian of the nearest-neighbour graph of points (n, d)."""
    from piq.msid import _build_graph

    return _build_graph(points, K)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which piq uses, and restore it on leaving."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
