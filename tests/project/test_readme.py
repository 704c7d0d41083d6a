"""What the README says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.project.shown import carry_out

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    line for language, block in BLOCKS if not language for line in block.splitlines() if line.startswith("superlora ")
]
PYTHON = [block for language, block in BLOCKS if language == "python"]


def test_the_two_setup_commands_come_first() -> None:
    plain = [block.strip() for language, block in BLOCKS if not language]
    assert plain[0] == "pip install -e . && superlora train recipes/quickstart.yaml"
    assert plain[1] == "pip install -e '.[test]' && pytest"


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(Path(__file__).parents[2] / name)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) >= 7
    for command in COMMANDS:
        result = carry_out(command)
        if "--order" in command:
            assert "5,776" in result.out


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_of_the_readme_runs(
    code: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert int(capsys.readouterr().out) > 0


def python_blocks(*, with_peers: bool) -> list[str]:
    """The Python of docs/python.md: what needs transformers or PEFT, or what does not."""
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    return [block for block in blocks if bool(re.search(r"^from (peft|transformers)", block, flags=re.M)) == with_peers]


@pytest.mark.parametrize("code", python_blocks(with_peers=False))
def test_the_python_of_the_docs_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})


def test_the_docs_table_of_keys_is_the_schemas() -> None:
    from superlora_cli.recipe.describe import markdown_table

    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert text.rpartition("<!-- keys: superlora schema --markdown -->\n")[2].strip() == markdown_table().strip()
