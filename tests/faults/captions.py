"""Folders of images whose captions are none: they are left out and named, or one line says why nothing can be done."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import images
from tests.faults.material import PHOTOS, TRAIN_TEXT, Material
from tests.faults.trials import Trial, complaint, outcome

Rows = list[dict[str, object]]
NO_TEXT = (b"", b" \n\t\n", b"\xef\xbb\xbf", "\u3000".encode())
NOT_UTF8 = (
    "café".encode("latin-1"),
    "a cat".encode("utf-16"),
    b"\xff\xfe\x00",
    b"a \xc3 b",
    "\ud800".encode("utf-8", "surrogatepass"),
)
ODD = (
    "a\0b",
    "\x1b[2J",
    "{x} {",
    "%s",
    "\r",
    "\u202eabc",
    "🐈" * 500,
    "x" * 100_000,
    "a\nb\nc",
    "'\"; --",
    "<|endoftext|>",
)
NO_ROWS: tuple[object, ...] = (
    [], 7, None, "x", {}, {"file_name": 7, "text": "a"}, {"file_name": "bad.png"}, {"text": "a"},
    {"file_name": "bad.png", "text": None}, {"file_name": "bad.png", "text": ["a"]}, {"file_name": [], "text": "a"},
)  # fmt: skip
NOT_JSON = ("{", "[" * 100_000, "1" * 5000, "NaN", '{"file_name": "bad.png", "text": "\\ud800"}', "\0", "{} {}", "'a'")
NOT_CSV = ('"file_name,text\nbad.png,a', "file_name;text\nbad.png;a", "bad.png,a", "", "file_name,text\nbad.png",
           "file_name,text\n\0,\0", "file_name,text\nbad.png," + "x" * 200_000,
           "file_name,file_name\nbad.png,a")  # fmt: skip
ELSEWHERE = ("../secret.png", "/etc/passwd", "nowhere.png", "", "a.png/..", "bad.PNG", "\x1b[2J.png", ".", "x" * 5000)
TEMPLATES = ("{text", "{0}", "{}", "{text.__class__}", "{text!r}", "{text:>1000000000}", "{text:{class}}", "{text[0]}",
             "{class}", "}", "{text}" * 1000, "\x1b[2J")  # fmt: skip


def captions(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """One bad image or caption among good ones, each kind in turn."""
    for turn in range(rounds):
        kind = list(KINDS)[turn % len(KINDS)]
        with material.folder() as place:
            material.pictures(place)
            words = KINDS[kind](place / PHOTOS, draw) or ()
            done = material.commands.run(*TRAIN_TEXT, "train.steps=1", *words, cwd=place)
            log = place / "run" / "log.txt"
            said = log.read_text() if log.exists() else ""
            named = "left out" in said and "bad" in said
            fault = complaint(done)
            if fault is None and done.code not in (0, 2):
                fault = f"exit code {done.code}: {done.err[-300:]}"
            if fault is None and done.code == 0 and kind in LEFT_OUT and not named:
                fault = "left out without a word, or read"
            if fault is None and done.code and (place / "run").exists():
                fault = "refused, and leaves a run folder"
        what = outcome(done) if done.code else "left out and named" if named else "read"
        yield Trial("captions", kind, what, fault and f"{words} {fault}")


def _bad(folder: Path, caption: bytes | None) -> None:
    """One more image, with a caption or none."""
    (folder / "bad.png").write_bytes((folder / "0.png").read_bytes() + b"\0")  # other bytes, the same picture
    if caption is not None:
        (folder / "bad.txt").write_bytes(caption)


def _without(folder: Path, draw: random.Random) -> None:
    _bad(folder, draw.choice((None, *NO_TEXT)))


def _encoded(folder: Path, draw: random.Random) -> None:
    _bad(folder, draw.choice((*NOT_UTF8, b"\xff" + draw.randbytes(50))))


def _odd(folder: Path, draw: random.Random) -> None:
    _bad(folder, draw.choice(ODD).encode())


def _no_file(folder: Path, draw: random.Random) -> None:
    _bad(folder, None)
    caption = folder / "bad.txt"
    draw.choice((caption.mkdir, lambda: os.mkfifo(caption), lambda: caption.symlink_to("bad.txt"),
                 lambda: caption.symlink_to("nowhere"), lambda: caption.symlink_to("/dev/full")))()  # fmt: skip


def _image(folder: Path, draw: random.Random) -> None:
    (folder / "bad.txt").write_text("a bad one")
    images.KINDS[draw.choice(("truncated", "no image", "a decompression bomb"))](folder / "bad.png", draw)


def _rows(folder: Path) -> Rows:
    names = sorted(path.name for path in folder.glob("*.png"))
    return [{"file_name": name, "text": f"a picture called {name}"} for name in names]


def _lines(rows: list[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _row(folder: Path, draw: random.Random) -> None:
    _bad(folder, None)
    rows: list[object] = [row for row in _rows(folder) if row["file_name"] != "bad.png"]
    rows.insert(draw.randrange(len(rows)), draw.choice(NO_ROWS))
    (folder / "metadata.jsonl").write_text(_lines(rows))


def _json(folder: Path, draw: random.Random) -> None:
    lines = _lines(list(_rows(folder))).splitlines()
    lines.insert(draw.randrange(len(lines)), draw.choice(NOT_JSON))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def _csv(folder: Path, draw: random.Random) -> None:
    (folder / "metadata.csv").write_text(draw.choice(NOT_CSV))


def _spoiled(folder: Path, draw: random.Random) -> None:
    ending = draw.choice((".jsonl", ".csv"))
    text = _lines(list(_rows(folder)))
    if ending == ".csv":
        text = "file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in _rows(folder))
    content = bytearray(text.encode(draw.choice(("utf-8", "utf-8-sig", "utf-16"))))
    for _ in range(draw.randrange(4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (folder / f"metadata{ending}").write_bytes(content[: draw.randrange(len(content))])


def _elsewhere(folder: Path, draw: random.Random) -> None:
    rows = _rows(folder)
    draw.choice(rows)["file_name"] = draw.choice(ELSEWHERE)
    (folder / "metadata.jsonl").write_text(_lines(list(rows)))


def _twice(folder: Path, draw: random.Random) -> None:
    rows = _rows(folder)
    (folder / "metadata.jsonl").write_text(_lines([*rows, draw.choice(rows)]))


def _no_table(folder: Path, draw: random.Random) -> None:
    table = folder / draw.choice(("metadata.jsonl", "metadata.csv"))
    draw.choice((table.mkdir, lambda: os.mkfifo(table), lambda: table.symlink_to(table.name)))()


def _template(folder: Path, draw: random.Random) -> tuple[str, ...]:
    return (f"data.caption={json.dumps(draw.choice(TEMPLATES))}",)


def _nothing(folder: Path, draw: random.Random) -> None:
    for path in list(folder.iterdir()):
        if path.suffix == draw.choice((".png", ".txt")):
            path.unlink()


KINDS: dict[str, Callable[[Path, random.Random], tuple[str, ...] | None]] = {
    "no caption": _without,
    "a caption that is not UTF-8": _encoded,
    "an odd caption": _odd,
    "a caption that is no file": _no_file,
    "a broken image": _image,
    "a row of the table of other types": _row,
    "a line of the table that is no JSON": _json,
    "a table that is no CSV": _csv,
    "a damaged table": _spoiled,
    "a row for no image": _elsewhere,
    "two rows for an image": _twice,
    "a table that is no file": _no_table,
    "an odd template": _template,
    "no images, or no captions": _nothing,
}
LEFT_OUT = ("no caption", "a caption that is not UTF-8", "a caption that is no file", "a broken image")
