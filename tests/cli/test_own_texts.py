"""A user's own texts: `init` writes a recipe that trains, and `preview` shows what is learned of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.recipe.load import load_recipe
from tests import language_models
from tests.conftest import Cli
from tests.tasks.test_language import CHAT

SUMS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(6) for b in range(10)]
WORDS = [{"text": f"{number} is {'even' if number % 2 == 0 else 'odd'}"} for number in range(60)]
LABELLED = [{"text": str(number), "label": "odd" if number % 2 else "even"} for number in range(60)]
CHOICES = [{"prompt": f"{a}+1=", "choices": [str(a + 1), str(a)], "answer": 0} for a in range(60)]
TALK = [{"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in SUMS]  # fmt: skip


def write(place: str, rows: list[dict[str, Any]]) -> None:
    """Rows as the ending of a path says; a path without one is a folder of plain texts."""
    if place.endswith(".jsonl"):
        Path(place).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif place.endswith(".csv"):
        with Path(place).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        Path(place).mkdir()
        for number, row in enumerate(rows):
            Path(place, f"{number}.txt").write_text(row["text"])


def talking(folder: Path) -> str:
    """A tiny model whose tokenizer has a chat template."""
    language_models.saved("Llama", folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT}))
    return f"transformers:{folder}"


@pytest.mark.parametrize(
    ("place", "rows", "learned"),
    [
        ("sums.jsonl", SUMS, "completions of prompts"),
        pytest.param("words.csv", WORDS, "all of every text", marks=pytest.mark.slow),
        pytest.param("words", WORDS, "all of every text", marks=pytest.mark.slow),
        pytest.param("labelled.csv", LABELLED, "labels of texts", marks=pytest.mark.slow),
        pytest.param("choices.jsonl", CHOICES, "the right one of several answers", marks=pytest.mark.slow),
        pytest.param("talk.jsonl", TALK, "the answers in conversations", marks=pytest.mark.slow),
    ],
)
def test_a_recipe_for_texts_can_be_looked_at_and_trains(
    place: str, rows: list[dict[str, Any]], learned: str, cli: Cli, tmp_path: Path
) -> None:
    write(place, rows)
    model = talking(tmp_path / "model") if rows is TALK else "sums_llama"
    made = cli("init", "--data", place, "--model", model, "--json").json()
    assert (made["recipe"], made["texts"], made["length"]) == (f"{Path(place).stem}.yaml", 60, 128)
    assert (made["params"]["head"] > 0) == (rows is LABELLED)
    recipe = load_recipe(made["recipe"])
    assert (recipe.task, recipe.data.name, recipe.train.clip_norm) == ("language", place, 1.0)
    head = Path(made["recipe"]).read_text().splitlines()
    assert learned in head[0]
    assert f"# {made['params']['adapter']:,} parameters" in head[2]
    assert cli("preview", made["recipe"], "--json").json()["num"] == 4
    trained = cli("train", made["recipe"], "train.steps=2", "train.threads=1", "--out", "run", "--json")
    assert trained.code == 0, trained.err
    assert trained.json()["params"]["adapter"] == made["params"]["adapter"]


@pytest.mark.parametrize(
    ("parts", "held"),
    [
        (("train",), "validation: 0.1   # a tenth is held out to judge by, a tenth to test it"),
        (("train", "test"), "validation: 0.1   # a tenth is held out to judge by; the data have texts to test it"),
        (("train", "validation", "test"), None),
    ],
)
def test_a_recipe_says_what_is_held_out_and_which_rows_are_left_out(
    parts: tuple[str, ...], held: str | None, cli: Cli
) -> None:
    Path("sums").mkdir()
    for part in parts:
        write(f"sums/{part}.jsonl", [*SUMS, {"prompt": "1+1="}])
    made = cli("init", "--data", "sums", "--model", "sums_llama")
    assert f"left out {len(parts)} of {61 * len(parts)} texts" in made.err
    text = Path("sums.yaml").read_text()
    assert (held in text) if held else ("held out" not in text)
    assert load_recipe("sums.yaml").data.name == "sums"


def test_a_preview_marks_what_is_learned_and_counts_what_is_cut(cli: Cli) -> None:
    write("sums.jsonl", [*SUMS, *({"prompt": f"{'1+' * 10}{n}=", "completion": str(10 + n)} for n in range(20))])
    assert cli("init", "--data", "sums.jsonl", "--model", "sums_llama").code == 0
    words = ("preview", "sums.yaml", "language.length=8", "data.validation=0", "--count", "80")
    found = cli(*words, "--json").json()
    assert (found["num"], found["length"]) == (60, 8)  # the others have no room for a completion
    for text in found["texts"]:
        given, learned = text["parts"]
        assert (given["learned"], learned["learned"]) == (False, True)
        row = {"prompt": given["text"], "completion": learned["text"].rstrip("\0")}
        assert row["completion"].startswith(str(eval(given["text"].rstrip("="))))
        assert text["tokens"] == len(given["text"]) + text["learned"]
    assert "20 of 80 texts are longer than 8 tokens and are cut" in found["notes"]
    shown = cli(*words).out
    assert "20 of 80 texts are longer" in shown
    assert "│ learned " in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("init", "--data", "sums.jsonl", "--model", "glyphs_vit"), "glyphs_vit"),
        (("init", "--data", "sums.jsonl", "--model", "sums_llama", "--image-size", "32"), "--image-size: "),
        (("init", "--data", "bad.jsonl", "--model", "sums_llama"), "no text of the train part can be used"),
        (("init", "--data", "talk.jsonl", "--model", "sums_llama"), "has no chat template"),
        (("init", "--data", "nested.json", "--model", "sums_llama"), "write the list 'data' in it"),
        (("preview", "sums_roman_lora", "--out", "texts.png"), "texts are printed"),
    ],
)
def test_what_is_wrong_with_texts_is_said_and_nothing_written(words: tuple[str, ...], says: str, cli: Cli) -> None:
    write("sums.jsonl", SUMS)
    write("talk.jsonl", TALK)
    Path("nested.json").write_text(json.dumps({"data": SUMS}))
    Path("bad.jsonl").write_text('{"question": "1+1?"}\n')
    result = cli(*words)
    assert result.code == 2
    assert says in result.message
    assert not list(Path().glob("*.yaml"))
