"""Batches that worker processes read, when one of those ends."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from superlora_cli.data.batches import evaluation_batches
from superlora_cli.errors import RunError


class Images(Dataset[tuple[Tensor, int]]):
    """Four images, of which the third ends the process that reads it, if asked to."""

    def __init__(self, *, deadly: bool) -> None:
        self.deadly = deadly

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.deadly and index == 2:
            os._exit(9)
        return torch.zeros(3, 2, 2), index


def read(images: Images) -> list[int]:
    labels = [batch[1] for batch in evaluation_batches(images, 1, workers=1, pin=False)]
    return [int(label) for label in torch.cat(labels)]


def test_a_worker_that_ends_is_one_clear_error() -> None:
    with pytest.raises(RunError, match=r"data\.workers: a loader worker ended before its time .*fewer"):
        read(Images(deadly=True))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_ends_in_the_middle_of_a_batch_is_the_same_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
    with pytest.raises(RunError, match="a loader worker ended before its time"):
        read(Images(deadly=False))


def test_another_error_of_torch_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Too many open files")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", broken)
    with pytest.raises(RuntimeError, match="Too many open files"):
        read(Images(deadly=False))


def test_workers_read_in_order() -> None:
    assert read(Images(deadly=False)) == [0, 1, 2, 3]
