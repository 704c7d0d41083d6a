"""The embedded data sets, in memory: real handwritten digits, and rendered printed ones."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.transforms import Compose
from torchvision.transforms.functional import to_pil_image

from superlora_cli.data.augment import Transform, changes_images, stages
from superlora_cli.data.captioned import Captioned, CaptionedImages, captioned, check_template, in_memory
from superlora_cli.data.captioned_glyphs import NUMBERS, render_captioned
from superlora_cli.data.digits import load_digits_split
from superlora_cli.data.glyphs import Split, render_glyphs
from superlora_cli.data.source import Look, Sample
from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import DataSection

GLYPH_IMAGES = (20_000, 2_000)  # training images, and images for validation and for test: the defaults
GLYPH_NOISE = 0.02  # the default


class Images(Dataset[Sample]):
    """Images in memory: uint8 (n, 3, S, S) and labels (n,), normalised when read.

    Args:
        change: a random transform from an image to a normalised tensor.
        shift: each image is moved at random by up to this many pixels in each direction; its border is repeated.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, look: Look, *, change: Transform | None = None, shift: int = 0
    ) -> None:
        self.images, self.labels, self.change, self.shift = images, labels, change, shift
        self.augmented = change is not None or shift > 0
        self.mean = torch.tensor(look.mean).view(3, 1, 1) * 255
        self.std = torch.tensor(look.std).view(3, 1, 1) * 255

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if self.change is None:
            image = (self.images[index] - self.mean) / self.std
        else:
            image = self.change(to_pil_image(self.images[index]))
        if self.shift:
            side, pad = image.shape[-1], (self.shift,) * 4
            top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
            image = functional.pad(image, pad, mode="replicate")[:, top : top + side, left : left + side]
        return image, int(self.labels[index])


def load_embedded(section: DataSection, look: Look, *, seed: int) -> tuple[list[Images], str]:
    """`digits`, `glyphs` or both: training, validation and test images, and the SHA-256 of them all."""
    digest, sets = hashlib.sha256(), []
    parts: tuple[Any, ...] = ("train", "validation", "test")
    for split in parts:
        found = [_load(name, split, section, look.size, seed) for name in section.name.split("+")]
        images, labels = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
        sets.append(Images(images, labels, look, **(_augmented(section, look) if split == "train" else {})))
    return sets, digest.hexdigest()


def caption_embedded(section: DataSection, size: int, *, seed: int) -> Captioned:
    """`digits` with the word of their number as `{class}`, or `glyphs` with captions that say how they are printed.

    Raises:
        UsageError: the name is another, or the template of captions is wrong.
    """
    check_template(section.caption)
    if section.name == "digits":
        make = partial(_handwritten, section.caption or "a handwritten {class}", size)
    elif section.name == "glyphs":
        make = partial(_printed, section, size, seed)
    else:
        raise UsageError(f"'{section.name}' has no captions", where="data.name", hint="digits or glyphs")
    return Captioned(make("train"), make("validation"), make("test"))


def _handwritten(template: str, size: int, split: Split) -> CaptionedImages:
    images, labels = load_digits_split(split, size)
    words = [NUMBERS[label] for label in labels.tolist()]
    return in_memory(images, [captioned(template, word, word) for word in words], f"digits/{split}")


def _printed(section: DataSection, size: int, seed: int, split: Split) -> CaptionedImages:
    images, texts = render_captioned(split, _number(section, split), size, seed)
    captions = [captioned(section.caption, text, text.split()[2]) for text in texts]
    return in_memory(images, captions, f"glyphs/{split}")


def _number(section: DataSection, split: Split) -> int:
    """How many images of a rendered set are wanted."""
    train = split == "train"
    return (section.train_images if train else section.eval_images) or GLYPH_IMAGES[0 if train else 1]


def _augmented(section: DataSection, look: Look) -> dict[str, Any]:
    """The augmentation of training images, as arguments of `Images`."""
    change = Compose(stages(section, look)[1:]) if changes_images(section) else None
    return {"change": change, "shift": 1 if section.augment == "shift" else 0}


def _load(name: str, split: Any, section: DataSection, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """One split of one set: uint8 (n, 3, S, S) and labels (n,)."""
    if name == "digits":
        return load_digits_split(split, size)
    noise = GLYPH_NOISE if section.pixel_noise is None else section.pixel_noise
    return render_glyphs(split, _number(section, split), size, seed, noise)
