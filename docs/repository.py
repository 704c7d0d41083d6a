"""What the site has beyond docs/: files that pages link to elsewhere in the repository, and a navigation.

Pages are read in the repository and on the site. What is `../README.md` there is `repository/README.md` here, together
with all that is linked from it; notebooks become Markdown. The navigation is the list of pages in docs/index.md.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()[^)#:\s]+(?=[)#])")  # the file of a link; one with a colon is an address
SECTION = re.compile(r"^\*\*(.+?)\*\*(.+?)(?:\n\n|\Z)", flags=re.M | re.S)  # of the index: a name and its links


def place(file: Path) -> PurePosixPath:
    """Where the site has a file of the repository, as a source: `repository/examples/python.md`."""
    here = file.with_suffix(".md") if file.suffix == ".ipynb" else file
    inside = here.is_relative_to(DOCS)
    return PurePosixPath(here.relative_to(DOCS)) if inside else "repository" / PurePosixPath(here.relative_to(ROOT))


def folder_of(source: str) -> Path:
    """The folder in the repository of a source of the site."""
    parts = PurePosixPath(source).parent.parts
    return ROOT.joinpath(*parts[1:]) if parts[:1] == ("repository",) else DOCS.joinpath(*parts)


def linked(text: str, folder: Path) -> Iterator[Path]:
    """The files that a page in a folder links to."""
    for link in LINK.findall(text):
        yield (folder / link).resolve()


def sources(file: Path, config: MkDocsConfig) -> Iterator[File]:
    """The site's sources for a file outside docs/; those of a notebook are a page and its pictures."""
    name = place(file)
    if file.suffix == ".ipynb":
        text, made = MarkdownExporter().from_filename(file, {"unique_key": file.stem})
        yield File.generated(config, str(name), content=text)
        for picture, content in made["outputs"].items():
            yield File.generated(config, str(name.parent / picture), content=content)
    else:
        yield File.generated(config, str(name), abs_src_path=str(file))


def on_config(config: MkDocsConfig) -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    sections = [{name: [str(place(page)) for page in linked(links, DOCS)]} for name, links in SECTION.findall(index)]
    config.nav = ["index.md", *sections]


def on_files(files: Files, config: MkDocsConfig) -> None:
    pages = list(files.documentation_pages())
    while pages:
        page = pages.pop()
        for file in linked(page.content_string, folder_of(page.src_uri)):
            if file.is_file() and str(place(file)) not in files.src_uris:
                for source in sources(file, config):
                    files.append(source)
                    pages += [source] if source.is_documentation_page() else []


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = page.file.src_uri
    folder, start = folder_of(source), posixpath.dirname(source) or "."
    return LINK.sub(lambda link: posixpath.relpath(place((folder / link[0]).resolve()), start), markdown)
