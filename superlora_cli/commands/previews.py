"""What `superlora preview` does for the tasks that name it in `previews`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from superlora_cli.table import Table

Shown = tuple[str, list[tuple[str, str]]]
SOME = 4  # captions that a person is shown


class Preview:
    """A look at what a recipe trains on; slow imports belong inside the methods.

    Attributes:
        count: the number of images or texts by default.
        file: the picture that is written by default; None: nothing is written.
    """

    count: int
    file: Path | None = None

    def load(self) -> Callable[..., dict[str, Any]]:
        """The function from a recipe, `count` and, of a picture, `out` and `force`, to what `--json` prints."""
        raise NotImplementedError

    def tables(self, found: Mapping[str, Any]) -> Iterator[Shown]:
        """What a person is shown of that: titles, and names with values."""
        raise NotImplementedError


class Images(Preview):
    """Training images as the model sees them, with their labels."""

    count, file = 32, Path("preview.png")

    def load(self) -> Callable[..., dict[str, Any]]:
        from superlora_cli.commands.preview import preview

        return preview

    def tables(self, found: Mapping[str, Any]) -> Iterator[Shown]:
        size = found["image_size"]
        yield f"wrote {found['grid']}", [("images", f"{found['num']}, of {size} × {size} pixels")]


class Captioned(Preview):
    """Training images as they are cropped, with their captions, and how many there are of each size."""

    count, file = 32, Path("preview.png")

    def load(self) -> Callable[..., dict[str, Any]]:
        from superlora_cli.commands.preview_captioned import preview_captioned

        return preview_captioned

    def tables(self, found: Mapping[str, Any]) -> Iterator[Shown]:
        sizes = [
            (f"{size['width']} × {size['height']}", f"{size['images']:,} images, {size['seen']:,} in an epoch")
            for size in found["sizes"]
        ]
        captions = [("caption", caption) for caption in found["captions"][:SOME]]
        yield f"wrote {found['grid']}", [*sizes, *captions, *(("note", note) for note in found["notes"])]


class Texts(Preview):
    """Training texts as they are cut into tokens, with what is learned of them."""

    count = 4

    def load(self) -> Callable[..., dict[str, Any]]:
        from superlora_cli.commands.preview_texts import preview_texts

        return preview_texts

    def tables(self, found: Mapping[str, Any]) -> Iterator[Shown]:
        for number, text in enumerate(found["texts"], 1):
            title = f"text {number}: {text['tokens']:,} tokens, {text['learned']:,} learned"
            rows = [("learned" if part["learned"] else "read", part["text"]) for part in text["parts"]]
            yield title, [*rows, *([("label", text["label"])] if "label" in text else [])]
        longest = ("tokens of a text", f"{found['length']:,} at most")
        yield "all texts", [longest, *(("note", note) for note in found["notes"])]


PREVIEWS: Table[Preview] = Table("preview", {"images": Images(), "captioned": Captioned(), "texts": Texts()})
