"""Commands run inside a notebook, by `%run -m superlora_cli`, print what they print on a terminal."""

from __future__ import annotations

import pytest

from tests.conftest import Cli


def test_tables_are_text_on_stdout(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = cli("ls", "methods").out
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert cli("ls", "methods").out == outside != ""
