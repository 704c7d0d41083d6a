"""The notebooks of examples/ run from top to bottom, and are stored with what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def text(notebook: Any) -> str:
    """All that a notebook's cells printed."""
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A notebook, run with `folder` for temporary ones; a cell that fails is an error."""
    monkeypatch.setenv("TMPDIR", str(folder))
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    kept = pictures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, kernel_name="python3").execute()
    assert pictures(notebook) == kept > 0
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs_and_stays_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    assert pictures(notebook) > 0
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert path.stat().st_size < 300_000


@pytest.mark.slow
def test_the_notebook_from_a_folder_to_a_merged_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = text(run("own-images", tmp_path, monkeypatch))
    assert "test accuracy" in said
    assert "the merged model predicts the same: True" in said
    (folder,) = (file.parent for file in tmp_path.glob("*/merged.safetensors"))
    assert len((folder / "unsorted.csv").read_text().splitlines()) == 21
