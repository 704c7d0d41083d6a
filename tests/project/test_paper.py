"""The parameter counts in docs/paper.md and in the heads of the recipes are those that the commands give."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import run_cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("vit_cifar*.yaml"))
GENERATION = sorted((ROOT / "recipes").glob("unet_*_to_*.yaml"))
LINE = re.compile(
    r"(?:for (?P<name>\w+) in (?P<values>[^;]+); do )?"
    r"superlora (?P<command>(?:train|count-params) [^#`;\n]*\S)(?:; done)? +# (?P<counts>[\d, ]+)"
    r"(?:parameters)?(?: ?\+ (?:head )?(?P<head>[\d,]+))?"
)


class Claim(NamedTuple):
    """A command, and the parameters that a text says it trains."""

    words: str
    adapter: int
    head: int


def number(text: str) -> int:
    return int(text.replace(",", ""))


def claims(text: str) -> list[Claim]:
    """Every command with its counts; a shell loop is as many commands as it has values."""
    found = []
    for match in LINE.finditer(text):
        name, counts = match["name"], match["counts"].split()
        values = match["values"].split() if name else [""]
        head = number(match["head"] or "0")
        for value, count in zip(values, counts, strict=True):
            words = match["command"].replace(f"${name}", value) if name else match["command"]
            found.append(Claim(words, number(count), head))
    return found


ON_THE_PAGE = claims(PAGE)
IN_RECIPES = [claim for path in (*RECIPES, *GENERATION) for claim in claims(path.read_text(encoding="utf-8"))]


def check(claim: Claim) -> None:
    _, *words = shlex.split(claim.words)
    with contextlib.chdir(ROOT):
        counted = run_cli("count-params", *words, "--json").json()  # what `train` says of a recipe is the same
    assert (counted["adapter"], counted.get("head", 0)) == (claim.adapter, claim.head)


def test_no_command_escapes_the_check() -> None:
    without = ("superlora count-params --plot", "superlora train unet_svhn_pretrain")
    lines = [line for line in PAGE.splitlines() if re.search(r"superlora (train|count-params) ", line)]
    assert [line for line in lines if not claims(line) and not line.startswith(without)] == []
    for path in (*RECIPES, *GENERATION):
        assert claims(path.read_text(encoding="utf-8")), path
    for path in (*RECIPES, *GENERATION):
        assert any(claim.words.split()[1] == path.stem for claim in ON_THE_PAGE), path


@pytest.mark.parametrize("published", [147_456, 115_200, 165_572, 138_372, 14_155_776, 5_776])
def test_the_published_counts_are_on_the_page(published: int) -> None:
    assert published in [claim.adapter for claim in ON_THE_PAGE]


@pytest.mark.parametrize("claim", IN_RECIPES, ids=lambda claim: claim.words)
def test_the_head_of_a_recipe_says_what_it_trains(claim: Claim) -> None:
    check(claim)


@pytest.mark.parametrize("claim", sorted(set(ON_THE_PAGE)), ids=lambda claim: claim.words)
def test_the_page_says_what_a_command_trains(claim: Claim) -> None:
    check(claim)
