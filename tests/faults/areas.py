"""Everything that is tried, and how often: in the tests, and by `benchmarks/faults.py`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.faults import files, kills
from tests.faults.material import Material
from tests.faults.trials import Trial

Area = Callable[[Material, random.Random, int], Iterator[Trial]]

AREAS: dict[str, tuple[Area, int, int]] = {  # trials in the tests, and in one round of many
    "kills": (kills.kills, 6, 108),
    "adapters": (files.adapters, 28, 280),
    "forged": (files.forged, 24, 180),
    "bases": (files.bases, 14, 112),
}
