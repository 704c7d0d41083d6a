"""What to know of training images and their captions before they are trained on, a line each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from glob import escape

from superlora_cli.data.captioned import CaptionedImages
from superlora_cli.data.folder import some
from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.tasks.text_to_image.encoding import Seen

KOHYA = re.compile(r"([0-9]+)_.+")  # a folder for kohya's scripts: 10_dogs, whose images are seen 10 times in an epoch


def notes_on(
    base: PipelineBase, images: CaptionedImages, samples: Sequence[Seen], repeats: Mapping[str, int]
) -> Iterator[str]:
    """All there is to know of the training images, as they are seen."""
    yield from not_repeated(images.names, repeats)
    yield from cut(base, images)
    yield from enlarged(images, samples)


def not_repeated(names: Sequence[str], repeats: Mapping[str, int]) -> Iterator[str]:
    """A note if folders are called as for kohya's scripts, which repeat images by that, and no pattern repeats theirs.

    >>> print(*not_repeated(["10_dogs/1.png", "cats/1.png"], {"cats/*": 2}))
    kohya's repeats are not taken from folder names; set text-to-image.repeats: {"cats/*": 2, "10_dogs/*": 10}
    """
    left = (name for name in names if not any(fnmatchcase(name, pattern) for pattern in repeats))
    found = {
        f"{escape(folder)}/*": int(named[1])
        for folder in dict.fromkeys(name.rpartition("/")[0] for name in left)
        if (named := KOHYA.fullmatch(folder.rpartition("/")[2])) and int(named[1]) > 1
    }
    if found:
        setting = json.dumps({**repeats, **found}, ensure_ascii=False)
        yield f"kohya's repeats are not taken from folder names; set text-to-image.repeats: {setting}"


def cut(base: PipelineBase, images: CaptionedImages) -> Iterator[str]:
    """A note if captions are longer than what the pipeline's text encoders read of them."""
    tokenizer, most = base.tokenizer
    names = [
        name for name, text in zip(images.names, images.texts, strict=True) if len(tokenizer(text).input_ids) > most
    ]
    if names:
        count = f"{len(names):,} of {len(images):,} captions"
        yield f"{count} are cut at {most:,} tokens, where reading ends: {some(names)}"


def enlarged(images: CaptionedImages, samples: Sequence[Seen]) -> Iterator[str]:
    """A note if images are so small that they are enlarged at least twofold."""
    names = [
        images.names[sample.number]
        for sample in samples
        if any(2 * own <= side for own, side in zip(images.size(sample.number), sample.size, strict=True))
    ]
    if names:
        yield f"{len(names):,} of {len(images):,} images are enlarged at least twofold, and blurred: {some(names)}"
