"""Version, changelog and citation speak of the same release."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from superlora_cli import __version__

ROOT = Path(__file__).parents[2]


def test_the_citation_has_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


def test_the_newest_release_in_the_changelog_is_this_version() -> None:
    titles = re.findall(r"^## (.+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    released = [title for title in titles if title != "Unreleased"]
    assert titles[-len(released) :] == released
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", title) for title in released)
    assert released == sorted(released, key=lambda title: [int(n) for n in title.split()[0].split(".")], reverse=True)
    assert released[0].split()[0] == __version__
