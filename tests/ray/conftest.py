"""These tests need the `ray` extra; without it the folder is not collected. CI installs it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]
