"""English text that is on every machine: the docstrings of one version of Python's standard library.

Another version has other docstrings, and a distribution may have changed some: so the text's SHA-256 is fixed here.
Where the running Python is another one, the text can be brought in a file: `python -m superlora_cli.data.docstrings
FILE` writes it, and `data.root` names its folder.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from superlora_cli.errors import UsageError

VERSION = "3.11.7"
NAME = f"docstrings-{VERSION}"
WHAT = "the docstrings of Python's standard library"
SHA256 = "64571d594370b8ca15e3b03728fdb9d6896e379e6666f412bb46923c85c2879d"
LEAST = 80  # characters of a docstring that says something


def read_docstrings(root: str) -> list[str]:
    """The docstrings, in the order of their modules' names.

    Args:
        root: folder that may hold a file with them.

    Raises:
        UsageError: there is no such file, and the running Python is another version or has been changed.
    """
    file = Path(root) / f"{NAME}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else list(_of_library())
    if checksum(found) != SHA256:
        where = str(file) if file.is_file() else f"Python {platform.python_version()}"
        hint = f"with Python {VERSION}: python -m superlora_cli.data.docstrings {file}"
        raise UsageError(f"its docstrings are not those of Python {VERSION}", where=where, hint=hint)
    return found


def checksum(texts: list[str]) -> str:
    """The SHA-256 of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _of_library() -> Iterator[str]:
    """The docstrings of the modules of the running Python that are written in Python, without repetition."""
    folder, seen = Path(sysconfig.get_path("stdlib")), set()
    for name in sorted(sys.stdlib_module_names):
        for file in sorted([folder / f"{name}.py", *(folder / name).rglob("*.py")]):
            if not file.is_file() or {"test", "tests", "idlelib", "__pycache__"} & {*file.parts}:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in strings
                tree = ast.parse(file.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = (ast.get_docstring(node) or "").strip()
                    if len(text) >= LEAST and text not in seen:
                        seen.add(text)
                        yield text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    texts = list(_of_library())
    parser.parse_args().file.write_text(json.dumps(texts), encoding="utf-8")
    print(len(texts), sum(map(len, texts)), checksum(texts))
