"""The shipped sweeps: one for every figure of experiments, at full size and embedded, planned without torch."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from superlora_cli.recipe.load import shipped_sweeps
from superlora_cli.sweeping import plan
from superlora_cli.sweeping.plan import load_plan
from tests.conftest import Cli

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "paper.md").read_text(encoding="utf-8")
OTHERS = {"fgvc": "suites", "vtab": "suites", "peft_dreambooth": "text-to-image"}  # not of the paper → their page
FIGURES = ["4", "5a", "5b", "6a", "6b", "7a", "7b", "15", "17", "18", *map(str, range(19, 30))]
EXTREMES = {  # the least and the most parameters, as far as the paper or PEFT tells them
    "fig4": (136, 14_155_776),
    "fig5a": (4_544, 565_248),  # dense
    "fig6a": (144, None),  # "from 500 to 150"
    "fig6b": (76, None),  # "less than 80"
    "fig7a": (31, None),  # "only about 30"
    "peft_dreambooth": (300, 38_338_560),  # LoRA as PEFT has it
    "fig18": (136, 128 * 24 * 2 * 768),
}
PUBLISHED = {"fig4": 138_372, "fig5a": 75_776, "fig5b": 73_728, "fig6a": 5_112,
             "fig6b": 8_160, "fig7a": 8_512}  # fmt: skip


planned = cache(load_plan)  # takes seconds


def figures(name: str) -> list[str]:
    """The figures that a sweep file says it is for."""
    head = shipped_sweeps()[name].read_text(encoding="utf-8").splitlines()[0]
    found = re.match(r"# Fig\. ([\w, ]+?)(, embedded)?: ", head)
    assert found, head
    return found[1].split(", ")


@pytest.mark.parametrize("embedded", [False, True])
def test_every_figure_has_one_sweep(embedded: bool) -> None:
    names = [name for name in shipped_sweeps() if name.startswith("digits_") == embedded and name not in OTHERS]
    covered = [figure for name in names for figure in figures(name)]
    assert sorted(covered) == sorted(FIGURES)
    for name in names:
        assert f"`superlora sweep {name}" in PAGE, name


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_sweeps())
def test_every_shipped_sweep_is_planned(name: str) -> None:
    found = planned(shipped_sweeps()[name])
    runs = found.checked()
    counts = [run.params["adapter"] or 0 for run in runs]
    least, most = EXTREMES.get(name, (None, None))
    assert least in (None, min(counts))
    assert most in (None, max(counts))
    assert name not in PUBLISHED or PUBLISHED[name] in counts
    assert all(count > 0 for count in counts) or OTHERS.get(name) == "suites"  # which have the linear probe
    assert {run.recipe.train.optimizer.finds for run in runs} == {name in OTHERS}
    if name.startswith("digits_"):
        assert not found.impossible
        points = {(run.name, *map(str, run.overrides.items())) for run in runs}
        assert len(points) <= (8 if found.measure else 20)
    else:
        assert (found.measure is not None) == (runs[0].recipe.task == "diffusion")


@pytest.mark.slow
def test_registered_names_are_listed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "load_plan", planned)
    rows = {row["name"]: row for row in cli("ls", "sweeps", "--json").json()["sweeps"]}
    assert list(rows) == list(shipped_sweeps())
    pages = (PAGE, *((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in set(OTHERS.values())))
    told = re.findall(r"`superlora sweep (\w+)` \| (\d+) \|", "".join(pages))
    assert {name: row["runs"] for name, row in rows.items()} == {name: int(count) for name, count in told}
    assert rows["fig4"]["what"].startswith("Fig. 4: ImageNet-21k to CIFAR-100")


def test_a_shipped_sweep_dry_runs_by_its_name(cli: Cli) -> None:
    found = cli("sweep", "fig15", "--dry-run", "--json").json()
    assert [run["params"]["adapter"] for run in found["runs"]][2::4] == [1_415_578, 1_415_580, 1_415_584, 1_415_580]
    assert [run["params"]["head"] for run in found["runs"]] == [76_900] * 16
    assert found["time"]["seconds"] is None
    assert (
        cli("sweep", "digits_fig23", "--dry-run", "--json").json()["time"]["seconds"] is None
    )  # its base is not there
    assert "did you mean 'fig" in cli("sweep", "fig51", "--dry-run").message


def test_the_docs_table_of_keys_is_the_schemas(cli: Cli) -> None:
    text = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    table = text.rpartition("<!-- keys: superlora schema sweep --markdown -->\n")[2]
    assert table.strip() == cli("schema", "sweep", "--markdown").out.strip()
