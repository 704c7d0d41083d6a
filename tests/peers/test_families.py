"""A few families of timm take the whole way from `init` to PEFT; benchmarks/families.py takes all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import FEW, walk

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", FEW)
def test_a_family_is_adapted_merged_and_exported(name: str, tmp_path: Path) -> None:
    found = walk(name, tmp_path)
    assert found.head > 0
    assert found.targets > 0
    assert found.changed > 1e-4
    assert found.merged < 1e-4
    assert found.refused or (found.exported is not None and found.exported < 1e-4)
