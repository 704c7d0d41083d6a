"""YAML 1.2's scalars, one-line errors with line and column, bounded expansion, and never another exception."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superlora_cli.errors import UsageError
from superlora_cli.recipe.yaml import MAX_BYTES, MAX_DEPTH, MAX_NODES, dump_yaml, parse_yaml, read_yaml


def failure(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, lambda line, column: f"recipe.yaml:{line}:{column}")
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("0.07", 0.07),
        ("010", 10),
        ("+3", 3),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("'<<'", "<<"),
        ("=", "="),
        ("１", "１"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_keys_that_yaml_1_1_would_take_for_booleans_are_text() -> None:
    assert parse_yaml("on: 1\nno: 2").data == {"on": 1, "no": 2}


def test_positions_are_those_of_the_keys_and_items() -> None:
    document = parse_yaml("a:\n  b: 1\n  c: [x, y]\nd: {e: 5}\n")
    assert document.positions == {
        "a": (1, 1), "a.b": (2, 3), "a.c": (3, 3), "a.c.0": (3, 7), "a.c.1": (3, 10), "d": (4, 1), "d.e": (4, 5)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where", "part"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", "duplicate key 'a', first on line 1"),
        ("a: {b: 1, b: 2}", "1:11", "duplicate key 'b', first on line 1"),
        ("a: b: c", "1:5", "mapping values are not allowed here"),
        ("a:\n\t- b", "2:1", "indent with spaces"),
        ("a: 'x\n b", "2:3", "from line 1"),
        ("a: 1\n---\nb: 1", "2:1", "a second document"),
        ("a: \x00", "1:4", "U+0000"),
        ('a: "\\UFFFFFFFF"', "1:7", "out of range"),
        ('a: "\\ud800"', "1:4", "surrogate"),
        ("a: !!python/object:os.system {}", "1:4", "!!python/object:os.system"),
        ("a: !!int many", "1:4", "'!!int' does not fit 'many'"),
        ("a: !!binary aGk=", "1:4", "!!binary"),
        ("1: a", "1:1", "a key must be text, got 1"),
        ("true: a", "1:1", "a key must be text, got True"),
        ("? [a]\n: b", "1:3", "a key must be text"),
        ('"a\\nb": 1', "1:1", "a key must be text"),
        ("a: .nan", "1:4", "not finite"),
        ("a: 1e999", "1:4", "not finite"),
        ("a: " + "9" * 5000, "1:4", "not finite"),
    ],
)
def test_an_error_names_line_column_and_fact(text: str, where: str, part: str) -> None:
    error = failure(text)
    assert error.where == f"recipe.yaml:{where}"
    assert part in str(error)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("targets: [blocks.*.attn.qkv[q]]", "blocks.*.attn.qkv[q]"),
        ("targets: [q, blocks.*.attn.qkv[0:768]]", "blocks.*.attn.qkv[0:768]"),
        ("targets: [*.qkv]", "*.qkv"),
        ("targets: [*qkv]", "*qkv"),
        ("targets: *.qkv", "*.qkv"),
        ("targets:\n  - *.qkv[v]", "*.qkv[v]"),
        ("targets: [blocks.{0,1}.attn.qkv]", "blocks.{0,1}.attn.qkv"),
        ("targets: [re:blocks.*[qv]_proj]", "re:blocks.*[qv]_proj"),
    ],
)
def test_an_unquoted_pattern_gets_a_hint_to_quote_it(text: str, pattern: str) -> None:
    assert failure(text).hint == f'quote patterns: "{pattern}"'


def test_anchors_and_merges_work_within_bounds() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\nd: *a"
    assert parse_yaml(text).data["c"] == {"x": 5, "y": 2, "z": 4}
    assert parse_yaml(text).data["d"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("cycle", ["a: &a [*a]", "a: &a {b: *a}", "a: &a {<<: *a}", "a: &a {<<: [{<<: *a}]}"])
def test_an_alias_inside_itself_is_refused(cycle: str) -> None:
    assert "deep" in failure(cycle).message


def test_bombs_are_refused() -> None:
    levels = ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
    levels += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert f"{MAX_NODES:,} nodes" in failure("\n".join(levels)).message
    merges = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
    assert f"{MAX_NODES:,} nodes" in failure("\n".join(merges)).message
    assert f"{MAX_NODES:,} nodes" in failure("x: [" + "1," * 200_000 + "]").message
    assert f"{MAX_DEPTH} deep" in failure("x: " + "[" * 100_000).message


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    big, binary = tmp_path / "big.yaml", tmp_path / "binary.yaml"
    big.write_text("#" * (MAX_BYTES + 1))
    binary.write_bytes(b"a: \xff")
    for path, part in [
        (tmp_path / "none.yaml", "No such file"),
        (tmp_path, "is a folder"),
        (big, "1,000,000 bytes"),
        (binary, "not UTF-8 text (byte 3)"),
    ]:
        with pytest.raises(UsageError, match=r"^[^\n]*$") as caught:
            read_yaml(path)
        assert caught.value.where == str(path)
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("text", "got"), [("", "nothing"), ("# only a comment", "nothing"), ("[1]", "[1]"), ("a", "'a'")]
)
def test_the_top_level_is_a_mapping(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="expected keys") as caught:
        read_yaml(path)
    assert caught.value.message.endswith(f"got {got}")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(path).data == {"a": 1, "b": 2}


yamlish = st.text(st.sampled_from(list("ab1.e-+~!&*<>|%@`'\"[]{}:,?#=\\Uxud0F \n\t\r\x85\u2028é")), max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), yamlish, yamlish.map(lambda text: f"<<: &a\n {text}\nk: *a")))
def test_any_text_is_a_document_or_a_usage_error(text: str) -> None:
    message = ""
    try:
        parse_yaml(text)
    except UsageError as error:
        message = str(error)
    assert message.isprintable()


keys = st.text(min_size=1, max_size=8).filter(str.isprintable)
numbers = st.one_of(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False))
words = st.sampled_from(["off", "1e-4", "0o7", "1:30", "~", "null", "<<", "=", "2026-01-01", "*.qkv[q]", ""])
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words, st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_dumped_values_are_read_back(data: Any) -> None:
    assert repr(parse_yaml(dump_yaml(data)).data) == repr(data)


def test_floats_stay_exact() -> None:
    assert repr(parse_yaml("0.07").data) == "0.07"
    assert math.copysign(1, parse_yaml("-0.0").data) == -1
