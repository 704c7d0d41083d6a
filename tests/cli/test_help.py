"""`superlora --help` can be read, and shells complete from it."""

from __future__ import annotations

import pytest

from superlora_cli.cli.app import COMMANDS
from tests.conftest import Cli


def test_every_summary_is_whole_in_80_columns_and_in_the_order_of_work(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("--help").out.rpartition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)  # one line each
    assert all(len(line) <= 80 and not line.endswith(("...", "…")) for line in lines)


def test_shells_complete_commands(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SUPERLORA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "superlora ex")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert cli("ex").out.split() == ["export", "extract"]
    monkeypatch.delenv("_SUPERLORA_COMPLETE")
    assert "--install-completion" in cli("--help").out
