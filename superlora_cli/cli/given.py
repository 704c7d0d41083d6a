"""What a command line sets, to refuse options that do not go together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import typer

from superlora_cli.errors import UsageError


class Given:
    """The arguments and options that are on the command line.

    Attributes:
        values: by their names in Python.
    """

    def __init__(self, context: typer.Context) -> None:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        on_line = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
        self.values = {name: value for name, value in context.params.items() if name in on_line}
        self._shown = {
            one.name: one.opts[0] if one.param_type_name == "option" else one.metavar for one in context.command.params
        }

    def among(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of some names."""
        return {name: self.values[name] for name in names if name in self.values}

    def refuse(self, names: Iterable[str], message: str, hint: str) -> None:
        """Raise a UsageError about the first of `names` that is given, if any is."""
        for name in self.among(names):
            raise UsageError(message, where=self._shown[name], hint=hint)

    def refuse_all_but(self, names: Collection[str], message: str, hint: str) -> None:
        """Raise a UsageError about the first one given that is not among `names`, if any is."""
        self.refuse([name for name in self.values if name not in names], message, hint)
