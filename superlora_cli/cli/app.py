"""The `superlora` command: gathers the subcommands and turns errors into one line and an exit code.

Neither this file nor the top of any command's file imports torch, timm or numpy, so `--help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import signal
import sys
import time
from collections.abc import Iterable
from typing import Annotated

import typer

from superlora_cli import __version__
from superlora_cli.cli.console import report
from superlora_cli.errors import InterruptedRunError, RunError, SuperLoraError, UsageError
from superlora_cli.launch import speaks

MODULES = {"import": "import_file"}  # a word of Python cannot be a module's name
PATIENCE = 15  # seconds that the main process has to report an error all processes share

COMMANDS = (  # in the order of work
    *("ls", "init", "validate", "count-params", "preview", "find-rate", "train", "eval", "generate", "inspect"),
    *("merge", "export", "compress", "combine", "extract", "import", "push", "sweep", "tune", "report", "schema"),
)


def _exit_at_once() -> None:
    """Let Python search no object for cycles when it exits, which takes 20 ms of a short command.

    Libraries that torch loads need the search, to release what they count.
    """
    if "torch" not in sys.modules:
        gc.freeze()


atexit.register(_exit_at_once)


def parser(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with the subcommands `names`; every one costs an import and the reading of its options."""
    app = typer.Typer(
        name="superlora",
        help="Fine-tune pretrained models with SuperLoRA adapters: few parameters, one recipe, one file.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in names:
        module = importlib.import_module(f"superlora_cli.cli.{MODULES.get(name, name).replace('-', '_')}")
        app.command(name)(module.command)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"superlora {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune pretrained models with SuperLoRA adapters: few parameters, one recipe, one file.

    Add --debug to any command to see the traceback behind an error.
    """


def main() -> None:
    """Run the command line and exit with its code (0 ok, 1 failed, 2 bad input, 3 mismatch, 130 interrupted)."""
    words = sys.argv[1:] or ["--help"]
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    as_json = "--json" in words
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: clean up and say so
    try:
        app = parser(words[:1]) if words[0] in COMMANDS else parser()
        code = app(words, prog_name="superlora", standalone_mode=False) or 0
        if code == InterruptedRunError.code:  # the parser returns this on Ctrl-C, without printing anything
            raise KeyboardInterrupt
        sys.exit(code)
    except SuperLoraError as error:
        if debug:
            raise
        report(error, as_json=as_json)
        _wait_for_the_main_process(error)
        sys.exit(error.code)
    except (KeyboardInterrupt, typer.Abort):
        # An interrupt inside `exec`, which `dataclass` uses, leaves CPython with an error to raise at exit; a clean
        # `exec` clears it.
        exec("")
        report(InterruptedRunError("interrupted"), as_json=as_json)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        failure = _as_usage_error(error)
        report(failure, as_json=as_json)
        sys.exit(failure.code)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _wait_for_the_main_process(error: SuperLoraError) -> None:
    """Let the main process report the error first: a launcher stops all processes as soon as one ends."""
    if not speaks() and error.process is None:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(PATIENCE)


def _as_usage_error(error: Exception) -> SuperLoraError:
    """Errors of the command-line parser, and unexpected exceptions, as ours."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return UsageError(error.format_message(), hint="superlora --help")
    kind = type(error).__name__
    return RunError(f"{kind}: {error}".replace("\n", " "), hint="run again with --debug for the traceback")
