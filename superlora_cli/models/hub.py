"""The Hugging Face hub if it can be reached, else its cache."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

PATIENCE = 3.0  # seconds for the hub to answer
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def cache_if_unreachable() -> Iterator[bool]:
    """Inside, the hub's library only uses its cache if the hub does not answer; otherwise it would retry for a minute.

    Yields whether the hub can be reached, as far as that can be found out quickly (with a proxy it is assumed).
    """
    answers = not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not answers
    try:
        yield answers
    finally:
        constants.HF_HUB_OFFLINE = before


def cache_folder() -> str:
    """The folder of the hub's cache on this machine."""
    return str(constants.HF_HUB_CACHE)


def reachable(address: str) -> bool:
    """Whether the host of a web address answers; with a proxy this is assumed."""
    return any(map(os.environ.get, PROXIES)) or _answers(address)


def _answers(address: str) -> bool:
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
