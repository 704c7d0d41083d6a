"""The page of the equation speaks of every kind of tuner that PEFT has."""

from __future__ import annotations

import re
from pathlib import Path

from peft import PeftType

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.recipe.yaml import parse_yaml

PAGE = Path(__file__).parents[2] / "docs" / "equation.md"
ROWS = re.findall(r"^\| (`[A-Z0-9_`, ]+`) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_kind_is_in_the_table_once() -> None:
    listed = [name for names, _ in ROWS for name in re.findall(r"`([A-Z0-9_]+)`", names)]
    assert sorted(listed) == sorted(kind.value for kind in PeftType if kind != "SUPERLORA")  # our own plugin's


def test_every_setting_in_the_table_is_one() -> None:
    settings = [setting for _, what in ROWS for setting in re.findall(r"`(\{?method: [^`]*)`", what)]
    assert len(settings) > 10
    for setting in settings:
        knobs = parse_yaml(setting).data
        AdapterConfig.from_knobs(knobs.pop("method"), **knobs)
