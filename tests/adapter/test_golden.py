"""ΔW of every variant is what it was when golden.json was written: on other versions of torch and on other devices.

`python -m tests.adapter.test_golden` writes the file again; only a change of the format is a reason to.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.from_base import from_base
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.layout import plan
from tests.adapter.variants import VARIANTS, config_of, placed

FILE = Path(__file__).with_name("golden.json")
ENTRIES = 8  # of ΔW, spread evenly, beside its norm


def golden(name: str, device: str = "cpu") -> list[float]:
    """Some entries of all targets' ΔW, and their norm, for factors that numpy draws: (ENTRIES + 1,)."""
    knobs, targets = VARIANTS[name]
    shapes = plan(config_of(knobs), targets)
    draw = np.random.RandomState(1)
    drawn = {key: np.array(draw.randn(*shape)) for key, shape in sorted(shapes.tensors.items())}
    params = {key: torch.from_numpy(values).to(device) for key, values in drawn.items()}
    base = None
    if shapes.config.reads_base:
        weights = [torch.from_numpy(draw.randn(target.rows, target.columns)).float() for target in targets]
        base = from_base(shapes, weights)
    base = placed(shapes, base)
    frozen = Frozen(shapes, device=device, dtype=torch.float64, base=base)
    made = torch.cat([delta.flatten() for delta in deltas(shapes, params, frozen)]).double().cpu().numpy()
    return [*made[np.linspace(0, len(made) - 1, ENTRIES).astype(int)].tolist(), float(np.linalg.norm(made))]


WANTED: dict[str, list[float]] = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_is_what_it_was(name: str) -> None:
    wanted = WANTED[name]
    np.testing.assert_allclose(golden(name), wanted, rtol=0, atol=1e-6 * wanted[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_updates_are_what_they_were_on_a_gpu() -> None:
    for name, wanted in WANTED.items():
        np.testing.assert_allclose(golden(name, "cuda"), wanted, rtol=0, atol=1e-6 * wanted[-1], err_msg=name)


def test_every_variant_has_golden_numbers() -> None:
    assert WANTED.keys() == VARIANTS.keys()


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps([float(f'{x:.10g}') for x in golden(name)])}" for name in VARIANTS]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
