"""How well scores rank the images of a class above all others."""

from __future__ import annotations

from torch import Tensor


def average_precisions(scores: Tensor, labels: Tensor) -> list[float | None]:
    """The average precision of every class; None if it has no images.

    Args:
        scores: (n, classes), higher where the label is more likely.
        labels: (n, classes), 1 where an image has the label, else 0.

    >>> import torch
    >>> average_precisions(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), torch.tensor([[1, 0], [0, 0], [1, 0]]))
    [0.8333333333333333, None]
    """
    from sklearn.metrics import average_precision_score

    pairs = zip(scores.T.numpy(), labels.T.numpy(), strict=True)
    return [float(average_precision_score(own, score)) if own.any() else None for score, own in pairs]
