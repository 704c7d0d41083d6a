"""These tests need the `docs` extra; without it the folder is not collected. CI installs it."""

from importlib.util import find_spec

collect_ignore_glob = [] if all(map(find_spec, ("mkdocs", "mkdocstrings", "nbconvert"))) else ["test_*.py"]
