"""One server and one set of files to be spoiled for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.commands import Commands
from tests.faults.material import Material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    with Commands() as commands:
        yield Material(commands, tmp_path_factory.mktemp("faults"))
