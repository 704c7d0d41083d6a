"""Texts from files, Hugging Face sets and made ones: every row in its form, or left out and named."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from superlora_cli.data import docstrings
from superlora_cli.data.known import MadeTexts, TextFile, kind_named
from superlora_cli.data.splits import SPLITS, class_names, contents_of, seen_in_training
from superlora_cli.data.sums import NOTATIONS, Problem, problems
from superlora_cli.data.text_files import SUFFIXES, read_text_files
from superlora_cli.data.text_rows import UnfitError, check_columns, shaped
from superlora_cli.data.texts import Texts, TextSource, held_out, read_rows
from superlora_cli.errors import UsageError
from superlora_cli.recipe.schema import DataSection

ROWS = [{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(20)]
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in the form that a file's name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(__import__("pyarrow").Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_table_has_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": 'a "b",\nc', "completion": " ü"}]
    write(tmp_path / f"rows{suffix}", rows)
    assert list(read_text_files(tmp_path / f"rows{suffix}", None).train.rows) == rows
    assert read_text_files(tmp_path / f"rows{suffix}", {"text": "prompt"}).train.rows[0] == ROWS[0]


def test_parts_of_a_folder_are_found_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", ROWS[:3])
    write(tmp_path / "train-00001-of-00002.jsonl", ROWS[3:5])
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "any.csv", ROWS[5:6])
    found = read_text_files(tmp_path, None)
    assert (len(found.train), found.validation, len(found.test or ())) == (5, None, 1)
    for number in (0, 1):
        (tmp_path / f"train-0000{number}-of-00002.jsonl").rename(tmp_path / f"part-{number}.jsonl")
    assert read_text_files(tmp_path, None).test is not None
    assert len(read_text_files(tmp_path, None).train) == 5  # without those of the test


def test_a_part_test_may_be_alone(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "a.jsonl", ROWS[:3])
    found = held_out(read_text_files(tmp_path, None), 0.1, None, seed=0)
    assert [len(found.named(split)) for split in SPLITS] == [0, 0, 3]
    assert not found.notes
    (tmp_path / "test" / "a.jsonl").write_text("{}")
    with pytest.raises(UsageError, match="no text of the test part"):
        read_text_files(tmp_path, None)


def test_files_of_a_folder_that_are_no_texts_are_named(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", ROWS[:3])
    (tmp_path / "README.md").write_text("about")
    found = read_text_files(tmp_path, None)
    assert (len(found.train), found.notes) == (3, ("left out 1 file (plain text beside tables): README.md",))
    (tmp_path / "rows.jsonl").rename(tmp_path / "train.jsonl")
    write(tmp_path / "dev.jsonl", ROWS[3:4])
    for name in ("train_2.jsonl", "extra.csv"):
        write(tmp_path / name, ROWS[4:6])
    found = read_text_files(tmp_path, None)
    assert (len(found.train), len(found.test or ())) == (3, 1)
    why = "not called like a part, such as train-2"
    assert found.notes == ("left out 1 file (plain text beside tables): README.md",
                           f"left out 2 files ({why}): extra.csv, train_2.jsonl")  # fmt: skip
    (tmp_path / "train").mkdir()
    (tmp_path / "train.jsonl").rename(tmp_path / "train" / "a.jsonl")
    (tmp_path / "README.md").rename(tmp_path / "train" / "README.md")
    found = read_text_files(tmp_path, None)
    assert (len(found.train), found.notes[0]) == (3, "left out 1 file (plain text beside tables): train/README.md")


def test_plain_files_may_be_parts_beside_tables(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one")
    write(tmp_path / "test.jsonl", ROWS[:1])
    assert [row["text"] for row in read_text_files(tmp_path, None).train.rows] == ["one"]


def test_a_cell_may_be_long_without_changing_other_readers(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    write(tmp_path / "a.csv", [{"text": "a" * 2 * limit}])
    assert len(read_text_files(tmp_path / "a.csv", None).train.rows[0]["text"]) == 2 * limit
    assert csv.field_size_limit() == limit


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.jsonl").rename(tmp_path / "a.json")
    assert list(read_text_files(tmp_path / "a.json", None).train.rows) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_files_may_be_packed(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"train{suffix}", ROWS)
    packed = gzip.compress((tmp_path / f"train{suffix}").read_bytes())
    (tmp_path / f"train{suffix}").unlink()
    (tmp_path / f"train{suffix}.gz").write_bytes(packed)
    for place in (tmp_path, tmp_path / f"train{suffix}.gz"):
        assert list(read_text_files(place, None).train.rows) == ROWS
    assert isinstance(kind_named(f"train{suffix}.gz"), TextFile)
    (tmp_path / f"train{suffix}.gz").write_bytes(packed[:-9])
    with pytest.raises(UsageError, match="cannot be unpacked"):
        read_text_files(tmp_path, None)


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("prompt;completion\na, b;c\n", {"prompt": "a, b", "completion": "c"}),
        ('"prompt";"completion"\n"a;b";c\n', {"prompt": "a;b", "completion": "c"}),
        ("text\na; b, c\n", {"text": "a; b"}),
    ],
)
def test_columns_of_a_csv_file_may_be_separated_by_semicolons(content: str, row: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert list(read_text_files(tmp_path / "a.csv", None).train.rows) == [row]


def test_a_quote_that_is_not_closed_and_a_column_twice_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\na,b\nc,"d\ne,f\n')
    with pytest.raises(UsageError, match="cannot be read") as told:
        read_text_files(file, None)
    assert told.value.where == f"{file}: row 2"
    file.write_text("prompt,completion,completion\na,b,c\n")
    with pytest.raises(UsageError, match="has several columns 'completion'"):
        read_text_files(file, None)
    (tmp_path / "a.tsv").write_text('prompt\tcompletion\na\t"b" he said\nc\t"d\n')
    assert [row["completion"] for row in read_text_files(tmp_path / "a.tsv", None).train.rows] == ['"b" he said', '"d']
    (tmp_path / "a.tsv").write_text('prompt\tcompletion\na\t"b\tc"\n')
    assert [row["completion"] for row in read_text_files(tmp_path / "a.tsv", None).train.rows] == ["b\tc"]


@pytest.mark.parametrize("label", ["", "  ", None, float("nan")])
def test_an_empty_label_is_none(label: Any) -> None:
    assert shaped({"text": "x", "label": label}, None) == {"text": "x"}


def test_a_folder_that_datasets_has_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "set")
    assert list(read_text_files(tmp_path / "set", None).train.rows) == ROWS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"version": 1, "data": [{"text": "a"}]}', "holds no list of texts.*the list 'data' in it"),
        ("7", "holds no list of texts"),
        ('[{"text": "a"},]', "cannot be read"),
        ("{broken\n{}", "cannot be read"),
    ],
)
def test_json_without_a_list_of_texts_says_so(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsageError, match=says):
        read_text_files(tmp_path / "a.json", None)


def test_plain_files_are_texts_and_paragraphs_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n\n")
    assert [row["text"] for row in read_text_files(tmp_path / "a.txt", None).train.rows] == ["one", "two"]
    (tmp_path / "b.md").write_text("three")
    assert [row["text"] for row in read_text_files(tmp_path, None).train.rows] == ["one\n\ntwo\n\n\n", "three"]


@pytest.mark.parametrize(
    ("row", "columns", "found"),
    [
        ({"text": "a", "id": 3}, None, {"text": "a"}),
        ({"prompt": 7, "completion": 0.5}, None, {"prompt": "7", "completion": "0.5"}),
        ({"text": "a", "label": 3}, None, {"text": "a", "label": "3"}),
        ({"review": "a", "stars": 1}, {"text": "review", "label": "stars"}, {"text": "a", "label": "1"}),
        ({"q": "1?", "a": 2}, {"prompt": "Q: {q}", "completion": " {a}"}, {"prompt": "Q: 1?", "completion": " 2"}),
        ({"messages": TALK, "prompt": "x", "completion": "y"}, None, {"messages": TALK}),
        ({"conversations": SHAREGPT}, None, {"messages": TALK}),
        ({"talk": SHAREGPT}, {"messages": "talk"}, {"messages": TALK}),
        ({"messages": [TALK[0] | {"content": [{"type": "text", "text": "hi"}], "name": None}, TALK[1]]}, None,
         {"messages": TALK}),
        ({"messages": [TALK[0], CALL | {"content": None}, TALK[1]], "tools": json.dumps(TOOLS)}, None,
         {"messages": [TALK[0], CALL | {"content": ""}, TALK[1]], "tools": TOOLS}),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, None, {"prompt": TALK[:1], "completion": TALK[1:]}),
        ({"instruction": "add", "input": "1 2", "output": "3"}, None,
         {"prompt": "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n", "completion": "3"}),
        *(({"instruction": "add", "output": "3"} | given, None,
           {"prompt": "### Instruction:\nadd\n\n### Response:\n", "completion": "3"})
          for given in ({}, {"input": ""}, {"input": None})),
        ({"instruction": "add", "input": "", "output": "3"}, {"prompt": "{instruction}\n{input}"},
         {"prompt": "add\n", "completion": "3"}),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, None,
         {"prompt": "q\n", "choices": ["x", "y"], "answer": 1}),
        ({"question": "q", "choices": ["x", "y"], "answer": 1}, None,
         {"prompt": "q\n", "choices": ["x", "y"], "answer": 1}),
        *(
            ({"prompt": "p", "choices": ["x", "y"], "answer": answer}, None,
             {"prompt": "p", "choices": ["x", "y"], "answer": 1})
            for answer in (1, 1.0, "1", "B", "b", "y")
        ),
    ],
)  # fmt: skip
def test_a_row_has_the_form_of_its_columns(row: Any, columns: Any, found: Any) -> None:
    check_columns(columns)
    assert shaped(row, columns) == found


@pytest.mark.parametrize("row", [7, {}, {"text": ""}, {"text": True}, {"text": float("nan")}, {"text": None},
                                 {"prompt": "a"}, {"messages": TALK[:1]},
                                 {"prompt": "p", "choices": ["x"], "answer": 0}, {"prompt": "a", "completion": ""},
                                 {"text": "\ud83d"}, {"messages": [TALK[0] | {"on": datetime.date.max}, TALK[1]]},
                                 {"messages": [{"role": "user", "content": [{"type": "image"}]}, TALK[1]]},
                                 {"messages": TALK, "tools": "{"}, {"conversations": [{"from": ["gpt"], "value": "a"}]},
                                 {"prompt": TALK[:1], "completion": "hello"}, {"prompt": TALK, "completion": TALK[:1]},
                                 *({"prompt": "p", "choices": ["x", "y"], "answer": answer}
                                   for answer in ("z", "ß", 0.5, float("nan"), float("inf"), True))],
                         ids=ascii)  # fmt: skip
def test_a_row_of_no_form_is_not_read(row: Any) -> None:
    with pytest.raises(UnfitError):
        shaped(row, None)


def test_a_template_with_a_missing_value_makes_no_text() -> None:
    with pytest.raises(UnfitError):
        shaped({"prompt": "p", "answer": None}, {"completion": " {answer}"})


@pytest.mark.parametrize("template", ["{", "{}", "{a.b}", "{a[0]}", "{a:>1000000000}", "{a!r}"])
def test_templates_only_have_columns(template: str) -> None:
    with pytest.raises(UsageError, match=r"data\.columns\.prompt"):
        check_columns({"prompt": template})


def test_rows_that_are_left_out_are_named_with_their_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"prompt": 1}\n[\n')
    found = read_text_files(tmp_path / "a.jsonl", None)
    assert [(Path(bad.path).name, bad.cause) for bad in found.unreadable] == [
        ("a.jsonl:22", "has no text, no prompt with a completion, and no messages, but only the columns prompt"),
        ("a.jsonl:23", "not JSON"),
    ]
    assert len(found.notes) == 2


@pytest.mark.parametrize("kind", ["missing", "pipe", "empty folder", "empty file", "not UTF-8"])
def test_files_that_are_none_are_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    {
        "missing": lambda: None,
        "pipe": lambda: os.mkfifo(file),
        "empty folder": file.mkdir,
        "empty file": file.touch,
        "not UTF-8": lambda: file.write_bytes(b"\xff"),
    }[kind]()
    with pytest.raises(UsageError, match=r"no such file|no text of the train part|not UTF-8"):
        read_text_files(file, None)


def test_texts_are_held_out_by_their_contents() -> None:
    texts = read_rows(((str(number), row) for number, row in enumerate(ROWS)), None, [])
    splits = held_out(TextSource(texts, None, None), 0.1, "content", 0)
    more = held_out(TextSource(Texts([*texts.rows, {"text": "new"}]), None, None), 0.1, "content", 0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 2, 2]
    assert sum(row in more.test.rows for row in splits.test.rows) >= 1  # type: ignore[attr-defined]
    assert splits.fingerprint != more.fingerprint
    twice = held_out(TextSource(Texts([*texts.rows, *texts.rows]), None, None), 0.12, "content", 0)
    assert twice.notes == ("1 of 5 test texts are also training texts",)  # equal ones are beside each other
    assert seen_in_training(splits.test, twice.test) == "2 of 2 test texts are also training texts"


def test_every_label_gives_its_share_of_texts() -> None:
    rows = [{"text": f"{number}", "label": "rare" if number % 12 == 0 else "common"} for number in range(60)]
    splits = held_out(TextSource(Texts(rows), None, None), 0.1, "label", 0)
    assert [Counter(row["label"] for row in splits.named(split).rows) for split in SPLITS] == [  # type: ignore[attr-defined]
        {"rare": 3, "common": 43}, {"rare": 1, "common": 6}, {"rare": 1, "common": 6},
    ]  # fmt: skip
    (note,) = splits.notes
    assert note == "classes with fewer than 5 test texts, too few for a meaningful accuracy: rare (1)"
    plain = [Texts([{"text": row["text"]} for row in rows]), Texts(rows)]
    by = [held_out(TextSource(texts, None, None), 0.1, rule, 0) for texts in plain for rule in ("content", "label")]
    assert contents_of(by[0].test) == contents_of(by[1].test)
    assert contents_of(by[2].test) != contents_of(by[3].test)


def test_a_set_of_the_hub_has_texts(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"train": ROWS[:5], "test": [*ROWS[5:7], {"prompt": "x", "completion": None}]}
    sets = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "set")
    section = DataSection(name=f"hfds/{tmp_path / 'set'}")
    found = kind_named(section.name).texts(section, seed=0)
    assert list(found.train.rows) == ROWS[:5]
    assert found.test is not None
    assert list(found.test.rows) == ROWS[5:7]
    assert "test: row 3" in found.notes[0]


def test_classes_are_the_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in ("ab", "cb", "da")])
    assert class_names(DataSection(name=str(tmp_path / "a.jsonl"))) == ("a", "b")


def test_names_are_written_in_one_way() -> None:
    assert set(MadeTexts.names) == {*NOTATIONS, docstrings.NAME}
    assert TextFile.suffixes == SUFFIXES


# Made problems


@pytest.mark.slow
@pytest.mark.parametrize("digits", [2, 3])
def test_no_pair_of_numbers_is_in_two_splits(digits: int) -> None:
    def pairs(split: str, of: int) -> set[tuple[int, int]]:
        return {(min(own[:2]), max(own[:2])) for own in problems(split, 20_000, of)}

    for split in ("validation", "test"):
        for other in (2, 3):  # whichever notation was learned before
            assert not pairs(split, digits) & pairs("train", other)
    assert not pairs("validation", digits) & pairs("test", digits)


@pytest.mark.slow
def test_problems_are_written_and_solved_in_every_notation() -> None:
    sum_, difference = Problem(37, 85, minus=False), Problem(85, 37, minus=True)
    written = {name: (own.prompt(sum_), own.completion(sum_)) for name, own in NOTATIONS.items()}
    assert written == {
        "sums": ("37+85=", "122"),
        "sums-in-words": ("thirty-seven plus eighty-five is", " one hundred and twenty-two"),
        "sums-reversed": ("37+85=", "221"),
        "sums-in-roman": ("37+85=", "CXXII"),
        "sums-in-octal": ("37+85=", "172"),
    }
    assert (difference.digits, difference.result) == ("85-37=", 48)
    assert all(own.result >= 0 for own in problems("train", 500, 3))


@pytest.mark.slow
def test_made_sets_are_joined() -> None:
    section = DataSection(name="sums+sums-in-words", train_texts=30, eval_texts=4)
    found = kind_named(section.name).texts(section, seed=0)
    assert (len(found.train), len(found.validation or ()), len(found.test or ())) == (60, 8, 8)
    assert kind_named(section.name).embedded


def test_docstrings_are_those_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["some docstring", "another"]
    monkeypatch.setattr(docstrings, "SHA256", docstrings.checksum(texts))
    (tmp_path / f"{docstrings.NAME}.json").write_text(json.dumps(texts))
    assert docstrings.read_docstrings(str(tmp_path)) == texts
    (tmp_path / f"{docstrings.NAME}.json").write_text(json.dumps(texts[:1]))
    with pytest.raises(UsageError, match="not those of Python"):
        docstrings.read_docstrings(str(tmp_path))
