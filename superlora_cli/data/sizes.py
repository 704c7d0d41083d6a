"""How many images each split of a folder will have, found without decoding any."""

from __future__ import annotations

from pathlib import Path

from superlora_cli.data.folder import FolderImages, list_folder, name_below
from superlora_cli.data.known import has_several_labels
from superlora_cli.data.labelled import find_tables, list_table
from superlora_cli.data.scan import known_broken
from superlora_cli.data.source import Source
from superlora_cli.data.splits import DATA_SEED, SPLITS, hold_out_of
from superlora_cli.recipe.schema import DataSection


def folder_sizes(root: Path, section: DataSection) -> dict[str, int]:
    """The number of images by split; files that an earlier reading found broken do not count.

    Raises:
        UsageError: as `list_folder` and `list_table`.
    """
    tables = section.multi_label or (section.multi_label is None and find_tables(root))
    classes, parts = (list_table if tables else list_folder)(root)
    classed, broken = tables and not has_several_labels(section), known_broken(root)
    found: list[FolderImages | None] = []
    for part in parts:
        files = [(path, label) for path, label in part or () if name_below(root, path) not in broken]
        own = [(path, label[0] if classed and isinstance(label, tuple) else label) for path, label in files]
        found.append(None if part is None else FolderImages(own, [""] * len(own)))
    train, validation, test = found
    assert train is not None
    held, _ = hold_out_of(Source(train, validation, test, tuple(classes), ""), section, DATA_SEED)
    given = zip(SPLITS, (None, validation, test), strict=True)
    return {name: len(held[name] if images is None else images) for name, images in given}
