"""Models without values, for estimates of memory."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from superlora_cli.training.memory import give_storages


def test_a_layer_in_two_places_is_moved_once() -> None:
    layer = nn.Linear(2, 2, device="meta")
    model = nn.Sequential(layer, nn.Sequential(layer))
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_storages(model)
        assert model(torch.ones(1, 2)).device == torch.device("cpu")
