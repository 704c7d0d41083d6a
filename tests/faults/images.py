"""Folders of images some of which are none: they are left out and named, or one line says why nothing can be done."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from tests.faults.material import Material
from tests.faults.trials import Trial, complaint, outcome

WORDS = ("train", "quickstart", "data={name: ./pets, num_classes: 2, validation: 0.2}", "model.head=new",
         "train.steps=1", "train.batch_size=4", "train.threads=1", "--out", "run", "--quiet")  # fmt: skip
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F")


def images(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """One bad file among good ones, each kind in turn."""
    for turn in range(rounds):
        kind = list(KINDS)[turn % len(KINDS)]
        with material.folder() as place:
            for label in ("cat", "dog"):
                (place / "pets" / label).mkdir(parents=True)
                for number in range(5):
                    (place / "pets" / label / f"{number}.png").write_bytes(_png(draw))
            bad = place / "pets" / "cat" / "bad.png"
            KINDS[kind](bad, draw)
            done = material.commands.run(*WORDS, cwd=place)
            log = place / "run" / "log.txt"
            named = log.exists() and "left out" in log.read_text() and "bad" in log.read_text()
            fault = complaint(done)
            if fault is None and done.code not in (0, 2):
                fault = f"exit code {done.code}: {done.err[-300:]}"
            if fault is None and done.code == 0 and kind not in MAY_BE_READ and not named:
                fault = "left out without a word, or read"
        said = outcome(done) if done.code else "left out and named" if named else "read"
        yield Trial("images", kind, said, fault)


def _png(draw: random.Random, size: tuple[int, int] = (16, 16), mode: str = "RGB", form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.frombytes("RGB", size, draw.randbytes(size[0] * size[1] * 3))
    image.convert(mode).save(buffer, form)
    return buffer.getvalue()


def _cut(path: Path, draw: random.Random) -> None:
    form = draw.choice(("PNG", "JPEG", "GIF", "WEBP", "TIFF"))
    whole = _png(draw, form=form)
    path.write_bytes(whole[: draw.randrange(0, len(whole) * 3 // 4)])


def _flipped(path: Path, draw: random.Random) -> None:
    whole = bytearray(_png(draw, form=draw.choice(("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"))))
    for _ in range(draw.randrange(1, 20)):
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    path.write_bytes(whole)


def _bomb(path: Path, draw: random.Random) -> None:
    side = draw.choice((20_000, 60_000, 2**31 - 1))
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 10_000_000, 9)
    chunks = (
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (header, data, b"IEND")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _other(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice((b"", b"a text", b"%PDF-1.7", b"GIF89a", draw.randbytes(300), b"<svg/>", b"\0" * 64)))


def _renamed(path: Path, draw: random.Random) -> None:
    path.with_suffix(draw.choice((".jpg", ".bmp", ".webp"))).write_bytes(_png(draw, form=draw.choice(("PNG", "GIF"))))


def _loop(path: Path, draw: random.Random) -> None:
    path.symlink_to(draw.choice((path.name, "../cat/bad.png", "nowhere.png")))


def _folders_loop(path: Path, draw: random.Random) -> None:
    path.with_suffix("").symlink_to(draw.choice(("..", ".", "../../pets")))


def _unreadable(path: Path, draw: random.Random) -> None:
    draw.choice((path.mkdir, lambda: os.mkfifo(path)))()


def _odd_name(path: Path, draw: random.Random) -> None:
    names = (
        b"bad\xff\xfe.png",
        b"bad\n.png",
        b"bad\x1b[2J.png",
        b"bad" + b"x" * 200 + b".png",
        b"bad .png",
        b"-bad.png",
    )
    with open(os.path.join(os.fsencode(path.parent), draw.choice(names)), "wb") as file:
        file.write(b"no image")


def _odd_size(path: Path, draw: random.Random) -> None:
    path.write_bytes(_png(draw, size=draw.choice(((1, 1), (1, 3000), (3000, 1)))))


KINDS: dict[str, Callable[[Path, random.Random], object]] = {
    "truncated": _cut,
    "bits flipped": _flipped,
    "a decompression bomb": _bomb,
    "no image": _other,
    "the wrong ending": _renamed,
    "a link to itself or nowhere": _loop,
    "folders in a circle": _folders_loop,
    "a folder or a pipe": _unreadable,
    "an odd name": _odd_name,
    "an odd size": _odd_size,
}
MAY_BE_READ = ("bits flipped", "the wrong ending", "folders in a circle", "a folder or a pipe", "an odd size")
