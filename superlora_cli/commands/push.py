"""Put a finished run on the Hugging Face hub, with a model card, or write what would be put there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from superlora_cli.adapter import store
from superlora_cli.errors import RunError, UsageError
from superlora_cli.files import system_errors, write_atomic
from superlora_cli.opening.hub import FILES, checked_name
from superlora_cli.reporting.card import GRID, Facts, card
from superlora_cli.reporting.runs import Run, collect


def push(
    run: Path,
    name: str,
    *,
    licence: str,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    dry_run: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Upload the adapter (or model), its recipe, its results and a card, as one commit.

    The token is that of `hf auth login` or HF_TOKEN; it is neither printed nor stored.

    Args:
        name: of the repository, USER/NAME; it is made if it is missing.
        licence: an identifier of the hub.
        private: whether a new repository is private.
        revision: branch to commit to; default: main.
        message: of the commit.
        dry_run: a folder to write the files to, instead of uploading them.
        force: replace files in that folder.

    Returns:
        status, repository, files, and url and commit (or folder, of a dry run).

    Raises:
        UsageError: the run is not finished, the name is no name, or the hub refuses. RunError: the hub does not answer.
    """
    checked_name(name, "USER/NAME")
    files = _files(run, name, licence)
    if dry_run is not None:
        return {"status": "dry-run", "repository": name, "folder": str(_written(files, dry_run, force=force)),
                "files": sorted(files)}  # fmt: skip
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(library_name="superlora")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.create_commit(
            name,
            [CommitOperationAdd(path, content) for path, content in sorted(files.items())],
            commit_message=message or f"{run.resolve().name}, by superlora push",
            revision=revision,
        )
    except LocalTokenNotFoundError:
        raise UsageError("not logged in to the hub", where=name, hint="hf auth login, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "hf auth login, with a token that may write there" if status in (401, 403) else f"{api.endpoint} refused"
        raise UsageError(f"the hub answers {status}", where=name, hint=hint) from None
    except (HTTPError, OSError) as error:
        raise RunError(f"{api.endpoint} cannot be reached: {type(error).__name__}", where=name,
                       hint="check the network; --dry-run writes the files into a folder") from None  # fmt: skip
    return {"status": "pushed", "repository": name, "files": sorted(files), "url": str(done.repo_url),
            "commit": done.oid}  # fmt: skip


def _files(path: Path, name: str, licence: str) -> dict[str, bytes]:
    """The files of the repository, by name."""
    if not path.is_dir():
        raise UsageError("no such run folder", where=str(path), hint="a folder that `superlora train` wrote")
    run, *others = _repetitions(path)
    files = {file: (path / file).read_bytes() for file in FILES if (path / file).is_file()}
    recipe = (path / "recipe.yaml").read_text(encoding="utf-8")
    stored = store.load(run.result) if run.config else None
    facts = Facts(name, [run, *others], stored, recipe, licence)
    files["README.md"] = card(facts).encode()
    if facts.grid:
        files[GRID] = facts.grid.read_bytes()
    return files


def _repetitions(path: Path) -> list[Run]:
    """The run, and those beside it that differ from it by their seed only."""
    (own,), _ = collect([path])
    beside = [other for other in collect([path.resolve().parent])[0] if other.path.resolve() != path.resolve()]
    same = [other for other in beside if other.setting == own.setting and other.seeds != own.seeds]
    return [own, *sorted(same, key=lambda other: other.seeds[0])]


def _written(files: dict[str, bytes], folder: Path, *, force: bool) -> Path:
    with system_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not force or not (folder / "README.md").is_file():
                hint = "choose another --out, or --force"
                raise UsageError("is not an empty folder", where=str(folder), hint=hint)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomic(folder / name, content, force=force)
    return folder
