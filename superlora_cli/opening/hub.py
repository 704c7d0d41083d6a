"""Adapters on the Hugging Face hub: `hf-hub:USER/NAME`, or `hf-hub:USER/NAME@REVISION` (a commit, branch or tag)."""

from __future__ import annotations

import re
from pathlib import Path

from superlora_cli.errors import UsageError

PREFIX = "hf-hub:"
NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("adapter.safetensors", "model.safetensors", "recipe.yaml", "eval.json", "confusion.csv")  # of a run


def checked_name(name: str, where: str) -> str:
    """The name of a repository, `USER/NAME`.

    Raises:
        UsageError: it is not one.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a name on the hub", where=where, hint="USER/NAME, e.g. ada/pets-lorta")
    return name


def local(path: Path | str) -> Path:
    """A path as it is, or the file in the hub's cache of an adapter on the hub, downloaded unless it is there.

    The files of its run lie beside it.

    Raises:
        UsageError: there is no such adapter, it may not be read, or the hub cannot be reached and the cache has none.
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from superlora_cli.models.hub import cache_if_unreachable

    name, _, revision = str(path).removeprefix(PREFIX).partition("@")
    checked_name(name, str(path))
    try:
        with cache_if_unreachable() as answers:
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except LocalEntryNotFoundError:
        cause = "is not in the cache of the hub" if answers else f"{constants.ENDPOINT} cannot be reached"
        raise UsageError(cause, where=str(path), hint="check the name, and the network") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else "check the name and revision"
        raise UsageError(f"the hub answers {status}", where=str(path), hint=hint) from None
    for file in FILES[:2]:
        if (folder / file).is_file():
            return folder / file
    raise UsageError(f"holds no {FILES[0]}", where=str(path), hint="a repository that `superlora push` made")
