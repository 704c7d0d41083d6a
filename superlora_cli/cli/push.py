"""`superlora push`: a finished run in, a repository on the Hugging Face hub out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from superlora_cli.cli import options
from superlora_cli.cli.console import loading, print_json, print_pairs
from superlora_cli.errors import UsageError


def command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository on the hub; made if it is missing.")],
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence of the adapter, e.g. mit; asked for if missing."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Branch to commit to; default: main.")] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the files into a folder; upload nothing.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of --dry-run; default: NAME in the current folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files in the folder of --dry-run.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Share a run on the Hugging Face hub, with a model card.

    Uploads the adapter, its recipe, its results and a card that says what it is, how good it is and how to load it.
    Log in with `hf auth login`, or set HF_TOKEN.
    """
    if out is not None and not dry_run:
        raise UsageError("needs --dry-run", where="--out", hint="leave it out, or add --dry-run")
    from superlora_cli.opening.hub import checked_name

    checked_name(name, "USER/NAME")
    if licence is None:
        if as_json or not sys.stdin.isatty():
            raise UsageError("a licence is needed", where="--license", hint="e.g. mit, apache-2.0, cc-by-nc-4.0, other")
        licence = typer.prompt("Licence of the adapter (mit, apache-2.0, cc-by-4.0, cc-by-nc-4.0, other)", err=True)
    with loading("torch and the hub's library"):
        from superlora_cli.commands.push import push

    folder = (out or Path(name.partition("/")[2])) if dry_run else None
    done = push(
        run, name, licence=licence, private=private, revision=revision, message=message, dry_run=folder, force=force
    )
    if as_json:
        print_json(done)
        return
    rows = [("files", ", ".join(done["files"]))]
    if dry_run:
        rows.append(("look at", f"{done['folder']}/README.md"))
    else:
        rows += [("at", done["url"]), ("load it with", f"superlora eval hf-hub:{name}")]
    print_pairs(f"{'would push' if dry_run else 'pushed'} {name}", rows)
