"""One set of files to be spoiled for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.faults.material import Material
from tests.forking.commands import Commands


@pytest.fixture(scope="session")
def material(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(commands, tmp_path_factory.mktemp("faults"))
