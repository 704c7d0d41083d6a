"""Fixtures that run the command line in this process, each test in an empty folder of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.forking.commands import Commands

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several tests run at once, one thread each
QUICK = ("quickstart", "train.steps=6", "eval.every=3", "train.checkpoint_every=3", "train.threads=1")


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout; fails on anything beside it."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content

    @property
    def message(self) -> str:
        """The one line of an error, without a traceback around it."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("superlora: ")]
        assert self.err.endswith(line + "\n")
        assert "Traceback" not in self.err + self.out
        return line


Cli = Callable[..., Result]


def run_cli(*words: str | Path) -> Result:
    """`superlora WORDS...` in this process and the current folder."""
    from superlora_cli.cli.app import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["superlora", *map(str, words)]
    code: Any = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return Result(code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of folders of images stays out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command in an empty folder: `cli("train", "quickstart")`."""
    monkeypatch.chdir(tmp_path)
    return run_cli


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Carries out commands in processes of their own, without the seconds that importing takes."""
    with Commands() as carrying_out:
        yield carrying_out


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of six steps; read only: a test that writes copies it."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        result = run_cli("train", *QUICK, "--quiet")
    assert result.code == 0, result.err
    return folder / "runs" / "quickstart"


@pytest.fixture(scope="session")
def adapter(trained: Path) -> Path:
    """The adapter file of that run."""
    return trained / "adapter.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to see that nothing was touched."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


COST = ("images_per_second", "tokens_per_second", "data_wait", "memory")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without what they cost in time and memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in COST} for line in lines]


def environment() -> dict[str, str]:
    """For subprocesses: this package, one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
