"""The Hugging Face hub where it can be reached, and its cache where it cannot."""

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
    """Inside, the hub's library asks its cache alone if nobody answers: by itself it would try for a minute.

    Gives whether the hub can be reached, as far as that can be told quickly (through a proxy it is taken for granted).
    """
    answers = not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not answers
    try:
        yield answers
    finally:
        constants.HF_HUB_OFFLINE = before


def cache_folder() -> str:
    """Where the hub's files are kept on this machine."""
    return str(constants.HF_HUB_CACHE)


def reachable(address: str) -> bool:
    """Whether the host of a web address answers; through a proxy that is taken for granted."""
    return any(map(os.environ.get, PROXIES)) or _answers(address)


def _answers(address: str) -> bool:
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True
