"""`superlora eval --assign`: a table of images with their adapters in, predictions out."""

from __future__ import annotations

from pathlib import Path

from superlora_cli.cli.console import loading, print_json, print_pairs
from superlora_cli.cli.given import Given
from superlora_cli.errors import UsageError
from superlora_cli.files import check_output

OWN = ("table", "adapters", "overrides", "out", "force", "as_json")


def eval_assign(table: Path, adapters: Path | None, out: Path | None, given: Given, *, as_json: bool) -> None:
    """Predict every image of a table by its own adapter; the first argument is an override, too, as there is no run."""
    first = given.values.get("result", "")
    words = [*([first] if "=" in first else []), *given.values.get("overrides", ())]
    own = (*OWN, "result") if "=" in first else OWN
    given.refuse_all_but(own, "cannot be used with --assign", "leave out one of the two")
    if adapters is None:
        raise UsageError("needs --adapters", where="--assign", hint="--adapters FOLDER, with NAME.safetensors or runs")
    file = out or table.with_name(f"{table.stem}-predictions.csv")
    force = "force" in given.values
    check_output(file, force=force, fills=False)
    with loading():
        from superlora_cli.commands.assign import assign

    found = assign(table, adapters, file, words, force=force)
    if as_json:
        print_json(found)
        return
    rows = [("images", f"{found['n']:,}"), ("adapters", f"{len(found['adapters']):,}")]
    rows += [("cannot be read", f"{file['path']}: {file['cause']}") for file in found["unreadable"]]
    print_pairs(f"wrote {found['predictions']}", rows)
