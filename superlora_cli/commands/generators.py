"""How models generate: what `superlora generate` and `eval --against` do for the tasks that name it in `generates`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from superlora_cli.errors import UsageError
from superlora_cli.table import Table
from superlora_cli.tasks import TASKS

Tell = Callable[[str], object]


class Generator:
    """A way to generate; slow imports belong inside the methods.

    Attributes:
        options: those of `superlora generate` that not all have, as arguments of `generate`.
        to_folder: whether it makes images, for which a folder must be given.
        to_measure: further arguments where images are made to be measured; None: there are none to measure.
    """

    options: Collection[str] = ()
    to_folder = True
    to_measure: Mapping[str, Any] | None = None

    def generate(
        self, source: str, out: Path | None, console: Console, overrides: Sequence[str], **given: Any
    ) -> dict[str, Any]:
        """Generate with a run, an adapter or a shipped base, and return what `--json` prints.

        Args:
            given: the options that are given; and `tell`, which is given what goes to stdout, if there is no `out`.
        """
        raise NotImplementedError

    def rows(self, done: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What a person is told of the result, by name."""
        raise NotImplementedError


class FromClasses(Generator):
    """Images of classes."""

    options = ("num", "classes", "sampler", "steps", "guidance")
    to_measure: Mapping[str, Any] = {}

    def generate(
        self, source: str, out: Path | None, console: Console, overrides: Sequence[str], **given: Any
    ) -> dict[str, Any]:
        from superlora_cli.commands.generate import generate

        assert out is not None
        return generate(source, out, console, overrides, **given)

    def rows(self, done: Mapping[str, Any]) -> list[tuple[str, str]]:
        sampled = f"{done['sampler']}, {done['steps']} steps, guidance {done['guidance']:g}, seed {done['seed']}"
        return _of_images(done, f"{len(done['classes'])} classes", ("sampler", sampled))


class FromPrompts(Generator):
    """Images of prompts."""

    options = ("num", "prompts", "prompts_file", "negative", "size", "scale", "steps", "guidance")
    to_measure: Mapping[str, Any] = {"in_turn": True}

    def generate(
        self, source: str, out: Path | None, console: Console, overrides: Sequence[str], **given: Any
    ) -> dict[str, Any]:
        from superlora_cli.commands.generate_prompted import generate_prompted

        assert out is not None
        return generate_prompted(source, out, overrides, **given)

    def rows(self, done: Mapping[str, Any]) -> list[tuple[str, str]]:
        scales = "" if len(done["scales"]) == 1 else f" at {len(done['scales'])} scales"
        prompts = "1 prompt" if len(done["prompts"]) == 1 else f"{len(done['prompts'])} prompts"
        size = f"{done['size'][0]} × {done['size'][1]}, {done['seed']}"
        return _of_images(done, prompts + scales, ("size, seed", size))


class Texts(Generator):
    """Completions of prompts."""

    options = ("prompts", "prompts_file", "chat", "system", "max_tokens", "temperature")
    to_folder = False

    def generate(
        self, source: str, out: Path | None, console: Console, overrides: Sequence[str], **given: Any
    ) -> dict[str, Any]:
        from superlora_cli.commands.generate_text import generate_text

        tell: Tell | None = given.pop("tell", None)
        done = generate_text(source, overrides, out=out, **given, as_it_comes=tell)
        if tell is not None:
            several = "".join(f"{each['prompt']}{each['text']}\n" for each in done["completions"])
            tell("\n" if len(done["completions"]) == 1 else several)
        return done

    def rows(self, done: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [("completions", f"{len(done['completions']):,}")]


def _of_images(done: Mapping[str, Any], of: str, how: tuple[str, str]) -> list[tuple[str, str]]:
    return [
        ("images", f"{done['num']:,} of {of}, {done['seconds']:.0f} s"),
        ("grid", done["grid"]),
        ("model", done["model"]),
        ("adapter parameters", f"{done['params']:,}"),
        how,
    ]


GENERATORS: Table[Generator] = Table(
    "way to generate", {"classes": FromClasses(), "prompts": FromPrompts(), "texts": Texts()}
)


def generator_of(task: str) -> Generator:
    """How the models of a task generate.

    Raises:
        UsageError: they generate nothing, or in a way that is in no table.
    """
    name = TASKS[task].generates
    if name is None:
        raise UsageError(f"the task {task} generates nothing", hint="a run of another task")
    return GENERATORS.named(name, where=f"the task {task}")
