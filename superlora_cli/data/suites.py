"""Suites of small data sets that papers report together: VTAB-1k and FGVC. Light: counting and reports read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """Data sets whose results are averaged.

    Attributes:
        title: its name in print.
        groups: group → the names of its data sets, without the suite's, and their numbers of classes.
    """

    title: str
    groups: Mapping[str, Mapping[str, int]]

    @property
    def classes(self) -> dict[str, int]:
        """Data set → number of classes, in order."""
        return {name: classes for group in self.groups.values() for name, classes in group.items()}


SUITES = {
    "vtab": Suite(
        "VTAB-1k",
        {
            "Natural": {"cifar": 100, "caltech101": 102, "dtd": 47, "oxford_flowers102": 102, "oxford_iiit_pet": 37,
                        "svhn": 10, "sun397": 397},
            "Specialized": {"patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5},
            "Structured": {"clevr_count": 8, "clevr_dist": 6, "dmlab": 6, "kitti": 4, "dsprites_loc": 16,
                           "dsprites_ori": 16, "smallnorb_azi": 18, "smallnorb_ele": 9},
        },
    ),
    "fgvc": Suite(
        "FGVC",
        {"FGVC": {"cub200": 200, "nabirds": 555, "flowers": 102, "dogs": 120, "cars": 196}},
    ),
}  # fmt: skip


def names_of(suite: str) -> dict[str, int]:
    """`data.name` → number of classes.

    >>> names_of("fgvc")["fgvc/cub200"]
    200
    """
    return {f"{suite}/{name}": classes for name, classes in SUITES[suite].classes.items()}
