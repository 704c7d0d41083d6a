"""`superlora --help` can be read, and shells complete from it."""

from __future__ import annotations

import re
import subprocess
import sys

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
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")
    assert "_SUPERLORA_COMPLETE=complete_bash" in cli("--show-completion").out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_placeholder_is_not_the_options_own_name_in_capitals(cli: Cli, name: str) -> None:
    """Typer 0.27 takes such a placeholder for the option's name, which then is not found."""
    options = re.findall(r"^ *(?:-\w, )?--([\w-]+) +([A-Z]+)\b", cli(name, "--help").out, flags=re.MULTILINE)
    assert [option for option, placeholder in options if option.upper().replace("-", "_") == placeholder] == []


def test_a_command_imports_no_other_command() -> None:
    script = (
        "import atexit, sys; from superlora_cli.cli.app import main; sys.argv = ['superlora', 'count-params'];"
        "atexit.register(lambda: print(*(name for name in sys.modules if name.startswith('superlora_cli.cli.'))));"
        "main()"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    imported = {name.rpartition(".")[2].replace("_", "-") for name in shown.splitlines()[-1].split()}
    assert imported & set(COMMANDS) == {"count-params"}
