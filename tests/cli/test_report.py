"""`superlora report`: one page of many runs; what cannot be compared is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from superlora_cli.models.embedded import ASSETS
from superlora_cli.reporting.geometry import at_random
from tests.conftest import Cli, contents, environment, run_cli
from tests.reporting.folders import make_run

SHORT = ("train.steps=6", "eval.every=6", "train.threads=1", "--quiet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs of three methods, and one that was interrupted; read only."""
    folder = tmp_path_factory.mktemp("finished")
    for seed in (0, 1):
        make_run(folder / f"lora-{seed}", "digits_lora", f"seed={seed}", accuracy=0.9 + seed / 100, params=6144)
        make_run(folder / f"lorta-{seed}", "digits_lorta3d", f"seed={seed}", accuracy=0.8 + seed / 100, params=508)
    for ratio in (0.5, 0.1):
        make_run(
            folder / f"rho-{ratio}", "digits_linear_v2", f"adapter.ratio={ratio}", accuracy=0.7, params=int(500 * ratio)
        )
    make_run(folder / "stopped", "digits_dense", status="interrupted")
    return folder


@pytest.fixture
def runs(finished: Path, cli: Cli) -> Path:
    """A copy of them in the test's own folder."""
    return Path(shutil.copytree(finished, "runs"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense run of six steps."""
    out = tmp_path_factory.mktemp("dense") / "run"
    assert run_cli("train", "digits_dense", *SHORT, "--out", out).code == 0
    return out


def only(done: dict[str, Any]) -> dict[str, Any]:
    (section,) = done["sections"]
    assert isinstance(section, dict)
    return section


@pytest.mark.slow
def test_a_report_is_a_page_and_its_pictures(runs: Path, cli: Cli) -> None:
    done = cli("report", runs, "--json").json()
    assert done["report"] == "runs/report.html"
    assert done["figures"] == ["runs/report-figures/accuracy.svg", "runs/report-figures/loss.svg"]
    assert all(Path(file).read_text().startswith("<?xml") for file in done["figures"])
    assert done["runs"] == 6
    assert done["skipped"] == [{"run": "runs/stopped", "why": "interrupted: not finished"}]
    section = only(done)
    assert [(row["params"], row["seeds"]) for row in section["rows"]] == [
        (50, [0]),
        (250, [0]),
        (508, [0, 1]),
        (6144, [0, 1]),
    ]
    accuracy = section["measures"][0]
    assert accuracy["front"] == [0, 2, 3]
    assert accuracy["values"][3]["mean"] == pytest.approx(0.905)
    assert accuracy["before"] == 0.5
    assert [(one["metric"], one["ratio"]) for one in section["ratios"]] == [("accuracy", 0.1), ("loss", 0.1)]
    assert [(one["budget"], one["row"]) for one in section["budgets"] if one["metric"] == "accuracy"] == [
        (100, 0), (1000, 2), (10_000, 3)
    ]  # fmt: skip
    shown = cli("report", runs)
    assert "runs/stopped: interrupted: not finished" in shown.out
    assert "508 │ 0.805  LoRTA 3D, G 1 · rank 4" in shown.out


def test_the_page_needs_nothing_beside_it(runs: Path, cli: Cli) -> None:
    make_run(runs / "image", "digits_unet_lora", samples={"fid": 1.5, "recall": 0.5}, grid=b"\x89PNG picture")
    cli("report", runs)
    page = Path("runs/report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page)
    assert not re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", page)
    assert "data:image/png;base64,iVBORyBwaWN0dXJl" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_the_best_comes_first_with_how_it_went_and_what_it_mistakes(cli: Cli) -> None:
    for rate, accuracy in ((0.1, 0.8), (0.3, 0.9), (0.2, 0.7)):
        name = f"train.optimizer.lr={rate}"
        make_run(Path("runs") / str(rate), "digits_lora", name, accuracy=accuracy, validation=1 - accuracy)
    done = cli("report", "runs", "--json").json()
    assert [Path(file).name for file in done["figures"]] == ["accuracy.svg", "loss.svg", "curves.svg", "confusion.svg"]
    page = Path("runs/report.html").read_text()
    table = page[page.index("<tbody>") : page.index("</tbody>")]
    assert re.findall(r"train.optimizer.lr (0\.\d)</td>", table) == ["0.3", "0.1", "0.2"]
    assert page.count('aria-sort="descending"') == 1
    assert "confusion matrix of LoRA, rank 4 · train.optimizer.lr 0.2, 10 test images" in page  # best by validation


def test_names_are_words_and_never_markup(cli: Cli) -> None:
    folder = Path("<script>alert(1)<") / "&amp;"
    make_run(folder / "a", "digits_lora", "data.name=<b>$x$")
    assert cli("report", folder).code == 0
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>$x$" not in page
    assert "&lt;b&gt;$x$" in page


def test_the_same_runs_are_the_same_bytes(runs: Path, cli: Cli) -> None:
    cli("report", runs, "--out", "one.html")
    cli("report", runs, "--out", "other.html")
    assert Path("one.html").read_bytes() == Path("other.html").read_bytes()


def test_a_report_is_replaced_and_nothing_else(runs: Path, cli: Cli) -> None:
    assert cli("report", runs).code == 0
    mine = runs / "report-figures" / "mine.svg"
    mine.write_text("mine")
    assert cli("report", runs, "--metric", "loss").code == 0
    assert sorted(path.name for path in mine.parent.iterdir()) == ["loss.svg", "mine.svg"]

    Path("page.html").write_text("somebody's")
    before = contents(Path())
    refused = cli("report", runs, "--out", "page.html")
    assert refused.code == 2
    assert "page.html: the file exists and is not a report (--force overwrites it)" in refused.message
    Path("new-figures").mkdir()
    Path("new-figures/notes.svg").write_text("somebody's")
    assert "the folder is not empty" in cli("report", runs, "--out", "new.html").message
    Path("new-figures/notes.svg").unlink()
    assert contents(Path()) == before
    assert cli("report", runs, "--out", "page.html", "--force").code == 0


def test_one_metric_alone(runs: Path, cli: Cli) -> None:
    section = only(cli("report", runs, "--metric", "loss", "--budgets", "600", "--json").json())
    assert [measure["metric"] for measure in section["measures"]] == ["loss"]
    assert [(one["budget"], one["row"]) for one in section["budgets"]] == [(600, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty"], "empty: no run found (a folder that holds runs of `superlora train`)"),
        (["nowhere"], "nowhere: no such folder (a run, or a folder that holds runs)"),
        (["runs/stopped"], "runs/stopped: no finished run (runs/stopped: interrupted: not finished)"),
        (["runs", "--metric", "acuracy"], "--metric: unknown metric 'acuracy' (did you mean 'accuracy'?)"),
        (["runs", "--metric", "fid"], "--metric: no run has the metric 'fid' (they have accuracy, loss)"),
        (["runs", "--tolerance", "-1"], "--tolerance: the tolerance is -1.0 (0 or more, e.g. 0.01)"),
        (["runs", "--tolerance", "nan"], "--tolerance: the tolerance is nan (0 or more, e.g. 0.01)"),
        (["runs", "--budgets", "1e3"], "--budgets: '1e3' is not a number of parameters (e.g. 100,1000)"),
        (["runs", "--budgets", "0"], "--budgets: a budget of 0 parameters (1 or more)"),
        (["runs", "--out", "nowhere/a.html"], "nowhere: no such folder (create it first)"),
        (["runs", "--out", "a.pdf"], "a.pdf: cannot write a '.pdf' report (a name that ends in .html)"),
        (
            ["runs", "--against", "runs/stopped/run.json"],
            "runs/stopped/run.json: is a JSON file, not a run or an adapter",
        ),
        (["runs", "--against", "nowhere"], "nowhere: no such run or adapter"),
    ],
)
def test_bad_input_is_one_line(runs: Path, cli: Cli, words: list[str], message: str) -> None:
    Path("empty").mkdir()
    before = contents(Path())
    result = cli("report", *words)
    assert result.code == 2
    assert message in result.message
    assert contents(Path()) == before


def test_damaged_runs_are_named_and_skipped(runs: Path, cli: Cli) -> None:
    damage = {
        "lora-0": ("run.json", "{"),
        "lora-1": ("run.json", json.dumps({"status": "completed"})),
        "lorta-0": ("eval.json", "[]"),
        "rho-0.5": ("eval.json", None),
        "rho-0.1": ("adapter.safetensors", None),
    }
    for run, (file, content) in damage.items():
        path = runs / run / file
        path.unlink() if content is None else path.write_text(content)
    done = cli("report", runs, "--json").json()
    assert done["runs"] == 1
    why = {Path(one["run"]).name: one["why"] for one in done["skipped"]}
    assert why["rho-0.5"] == "has no eval.json"
    assert why["rho-0.1"] == "has no adapter.safetensors or model.safetensors"
    assert why["lorta-0"] == "eval.json is not a JSON object"
    assert why["lora-1"] == "damaged: KeyError 'recipe'"
    assert "run.json cannot be read" in why["lora-0"]


@pytest.mark.slow
def test_an_update_compared_with_itself_and_with_another(dense: Path, trained: Path, cli: Cli) -> None:
    for name, run in {"same": dense, "other": trained}.items():
        shutil.copytree(run, Path("runs") / name)
    done = cli("report", "runs", "--against", dense, "--json").json()
    assert [Path(file).name for file in done["figures"][-2:]] == ["geometry.svg", "geometry-summary.svg"]
    geometry = only(done)["geometry"]
    other, same = (one["weights"] for one in geometry["runs"])
    assert len(same) == len(other) == 12
    for weight in same.values():
        assert weight["left"] == pytest.approx(1, abs=1e-9)
        assert weight["right"] == pytest.approx(1, abs=1e-9)
        assert weight["distance"] == 0
        assert weight["vectors"] == 5
    for weight in other.values():
        assert 0 < weight["left"] < 1
        assert weight["distance"] > 0
    mean = sum(weight["right"] for weight in other.values()) / 12
    assert mean == pytest.approx(at_random(64), rel=0.3)  # a few steps through a fixed tensor: no common direction
    assert "Every weight" in Path("runs/report.html").read_text()


def test_updates_of_another_base_are_refused(dense: Path, trained: Path, cli: Cli) -> None:
    weights = load_file(ASSETS / "glyphs_vit.safetensors")
    weights["blocks.0.attn.qkv.weight"] += 0.01 * torch.randn(192, 64, generator=torch.Generator().manual_seed(0))
    save_file(weights, "other.safetensors")
    base = f"model.checkpoint={Path('other.safetensors').absolute()}"
    assert cli("train", "digits_dense", base, *SHORT, "--out", "dense").code == 0
    shutil.copytree(trained, "runs/one")
    before = contents(Path())
    result = cli("report", "runs", "--against", "dense")
    assert result.code == 3
    assert "blocks.0.attn.qkv[0:64] of its base differs from that of dense" in result.message
    assert contents(Path()) == before


def test_runs_of_another_section_are_not_compared(dense: Path, cli: Cli) -> None:
    make_run(Path("runs/a"), "digits_lora", "data.name=glyphs")
    result = cli("report", "runs", "--against", dense)
    assert result.code == 3
    assert "no other run is classification of glyphs_vit on digits (use runs with the same base and" in result.message


@pytest.mark.slow
def test_a_report_without_geometry_does_not_wait_for_torch(runs: Path) -> None:
    code = (
        "import sys; sys.argv = ['superlora', 'report', 'runs', '--json']\n"
        "from superlora_cli.cli.app import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"
