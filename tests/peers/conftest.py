"""These tests need the `bench` extra; without it the folder is not collected. CI installs it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("peft") and find_spec("lycoris") and find_spec("tensorly") else ["*.py"]
