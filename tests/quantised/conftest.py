"""These tests need the `quantize` extra; without it the folder is not collected. CI installs it."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torchao") and find_spec("bitsandbytes") else ["*.py"]
