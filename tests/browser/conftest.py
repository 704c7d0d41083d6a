"""These tests need the `browser` extra and a Chromium; without them the folder is not collected. CI installs both."""

import shutil
from importlib.util import find_spec

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

collect_ignore_glob = [] if CHROMIUM and find_spec("playwright") else ["test_*.py"]
