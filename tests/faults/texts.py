"""Files of texts some of whose rows are none: they are left out and named, or one line says why nothing can be done."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.material import TRAIN_ON_TEXTS, Material
from tests.faults.trials import Trial, complaint, outcome

NOT_JSON = ("{", "[" * 100_000, "1" * 5000, '{"prompt": "a"', "\0", "{} {}", "'a'", "\x1b[2J", "completion")
NO_FORM: tuple[object, ...] = (
    [], 7, None, "x", {}, {"prompt": "1"}, {"completion": "2"}, {"prompt": 1, "completion": "2"}, {"text": ""},
    {"prompt": "1", "completion": ""}, {"prompt": "1", "completion": ["2"]}, {"text": None}, {"text": {"a": 1}},
    {"messages": []}, {"messages": "hi"}, {"messages": [{"role": "user"}]}, {"messages": [["user", "hi"]]},
    {"messages": [{"role": "user", "content": "hi"}]}, {"prompt": "1", "choices": ["a"], "answer": 0},
    {"prompt": "1", "choices": ["a", "b"], "answer": 2}, {"prompt": "1", "choices": ["a", 3], "answer": 0},
    {"prompt": "1", "choices": ["a", "b"], "answer": "c"}, {"prompt": "1", "choices": "ab", "answer": -1},
    {"prompt": "1", "choices": ["a", "b"], "answer": float("inf")},
    {"prompt": "1", "choices": ["a", "b"], "answer": [0]},
)  # fmt: skip
ODD = (
    "a\0b",
    "\x1b[2J",
    "{x} {",
    "\r",
    "\u202eabc",
    "🐈" * 500,
    "x" * 100_000,
    "a\nb\nc",
    "'\"; --",
    "<|end|>",
    "\ud800",
)
TEMPLATES = ("{prompt", "{0}", "{}", "{prompt.__class__}", "{prompt!r}", "{prompt:>1000000000}", "{prompt:{prompt}}",
             "{prompt[0]}", "}", "nowhere", "{nowhere}", "\x1b[2J")  # fmt: skip
NOT_UTF8 = ("café".encode("latin-1"), "a cat".encode("utf-16"), b"\xff\xfe\x00", b"a \xc3 b")
NOT_PARQUET = (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"\0" * 5000)


def texts(material: Material, draw: random.Random, rounds: int) -> Iterator[Trial]:
    """One bad row, file or template, each kind in turn."""
    for turn in range(rounds):
        kind = list(KINDS)[turn % len(KINDS)]
        with material.folder() as place:
            material.texts(place)
            words = KINDS[kind](place, draw) or ()
            done = material.commands.run(*TRAIN_ON_TEXTS, "train.steps=1", *words, cwd=place)
            log = place / "run" / "log.txt"
            named = log.exists() and "left out 1 of 21 texts" in log.read_text() and "texts.jsonl:21" in log.read_text()
            fault = complaint(done)
            if fault is None and done.code not in (0, 2):
                fault = f"exit code {done.code}: {done.err[-300:]}"
            if fault is None and done.code == 0 and kind in LEFT_OUT and not named:
                fault = "left out without a word, or read"
            if fault is None and done.code and (place / "run").exists():
                fault = "refused, and leaves a run folder"
        what = outcome(done) if done.code else "left out and named" if named else "read"
        yield Trial("texts", kind, what, fault and f"{words} {fault}")


def _line(place: Path, line: str) -> None:
    with (place / "texts.jsonl").open("a", encoding="utf-8", errors="surrogatepass") as file:
        file.write(line + "\n")


def _not_json(place: Path, draw: random.Random) -> None:
    _line(place, draw.choice(NOT_JSON))


def _no_form(place: Path, draw: random.Random) -> None:
    _line(place, json.dumps(draw.choice(NO_FORM)))


def _odd(place: Path, draw: random.Random) -> None:
    row = {"prompt": draw.choice(ODD), "completion": draw.choice(ODD)}
    _line(place, json.dumps(row))


def _not_utf8(place: Path, draw: random.Random) -> None:
    with (place / "texts.jsonl").open("ab") as file:
        file.write(draw.choice(NOT_UTF8) + b"\n")


def _template(place: Path, draw: random.Random) -> tuple[str, ...]:
    return (
        f"data.columns={json.dumps({draw.choice(('prompt', 'completion', 'text', 'label')): draw.choice(TEMPLATES)})}",
    )


def _cut(place: Path, draw: random.Random) -> None:
    whole = (place / "texts.jsonl").read_bytes()
    (place / "texts.jsonl").write_bytes(whole[: draw.randrange(len(whole))])


def _flipped(place: Path, draw: random.Random) -> None:
    whole = bytearray((place / "texts.jsonl").read_bytes())
    for _ in range(draw.randrange(1, 20)):
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    (place / "texts.jsonl").write_bytes(whole)


def _parquet(place: Path, draw: random.Random) -> tuple[str, ...]:
    (place / "bad.parquet").write_bytes(draw.choice(NOT_PARQUET))
    return ("data.name=bad.parquet",)


def _csv(place: Path, draw: random.Random) -> tuple[str, ...]:
    content = draw.choice(("", "prompt,completion", "prompt;completion\na;b", 'prompt,completion\n"a,b', "\0,\0\n\0,\0",
                           "prompt,completion\n" + "x" * 200_000 + ",y", "a,b\n1,2,3\n4"))  # fmt: skip
    (place / "bad.csv").write_text(content)
    return ("data.name=bad.csv",)


def _no_file(place: Path, draw: random.Random) -> tuple[str, ...]:
    kind = draw.choice(("pipe", "folder", "loop", "empty folder", "missing"))
    bad = place / "bad.jsonl"
    if kind == "pipe":
        os.mkfifo(bad)
    elif kind == "folder":
        bad.mkdir()
        (bad / "train.jsonl").mkdir()
    elif kind == "loop":
        bad.symlink_to("bad.jsonl")
    elif kind == "empty folder":
        bad.mkdir()
    return ("data.name=bad.jsonl",)


Kind = Callable[[Path, random.Random], tuple[str, ...] | None]
KINDS: dict[str, Kind] = {
    "not JSON": _not_json,
    "no form": _no_form,
    "odd texts": _odd,
    "not UTF-8": _not_utf8,
    "templates": _template,
    "cut": _cut,
    "flipped": _flipped,
    "not parquet": _parquet,
    "not CSV": _csv,
    "no file": _no_file,
}
LEFT_OUT = ("not JSON", "no form")
