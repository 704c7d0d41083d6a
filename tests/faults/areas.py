"""Everything that is tried, and how often: in the tests, and by `benchmarks/faults.py`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

from tests.faults import captions, checkpoints, disks, files, images, kills, pipelines, recipes, texts, together
from tests.faults.material import Material
from tests.faults.trials import Trial

Area = Callable[[Material, random.Random, int], Iterator[Trial]]

AREAS: dict[str, tuple[Area, int, int]] = {  # trials in the tests, and in one round of many
    "kills": (kills.kills, 6, 108),
    "full disks": (disks.full, 3, 30),
    "failing disks": (disks.failing, 2, 18),
    "read-only folders": (disks.read_only, 3, 10),
    "vanishing files": (disks.vanishing, 3, 18),
    "slow disks": (disks.slow, 1, 6),
    "adapters": (files.adapters, 28, 280),
    "forged": (files.forged, 24, 180),
    "bases": (files.bases, 14, 112),
    "checkpoints": (checkpoints.checkpoints, 17, 170),
    "recipes": (recipes.recipes, 30, 300),
    "overrides": (recipes.on_the_command_line, 12, 120),
    "images": (images.images, 8, 40),
    "together": (together.together, 3, 25),
    "captions": (captions.captions, 7, 84),
    "pipelines": (pipelines.damaged, 6, 108),
    "caches": (pipelines.caches, 3, 34),
    "kills on pipelines": (partial(kills.kills, victims=kills.ON_A_PIPELINE), 3, 35),
    "texts": (texts.texts, 10, 120),
    "kills on texts": (partial(kills.kills, victims=kills.ON_TEXTS), 2, 20),
    "full disks of pipelines": (partial(disks.full, writers=disks.ON_PIPELINES), 2, 12),
}
