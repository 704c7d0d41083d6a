"""The table of the kinds of data sets: one list for all who ask, light to import, and open to kinds from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from superlora_cli.analysis.trained import trained_params
from superlora_cli.data.known import SOURCES, TORCHVISION, kind_of
from superlora_cli.data.splits import class_count
from superlora_cli.errors import UsageError
from superlora_cli.generation.image_sets import parse_reference
from superlora_cli.recipe.load import load_recipe
from tests.conftest import Cli, environment
from tests.data.conftest import QUICK, splits_of
from tests.data.toy import COLOURS, Toy

ROOT = Path(__file__).parents[2]
HEAD = 3 * 64 + 3  # parameters of a new one for three colours


@pytest.fixture
def toy() -> Iterator[None]:
    """A kind of data from outside."""
    SOURCES.add("toy", Toy())
    yield
    SOURCES.remove("toy")


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_head_is_counted_for_the_classes_it_is_built_for(name: str) -> None:
    recipe = load_recipe("quickstart", ["model.head=new", f"data.name={name}"])
    classes = class_count(recipe.data)
    assert classes is not None
    assert trained_params(recipe)["head"] == classes * 64 + classes


def test_kinds_of_data_are_listed_and_counted_without_torch() -> None:
    script = (
        "import sys; from superlora_cli.data.known import SOURCES, kind_of; from superlora_cli.analysis import trained;"
        "assert [kind_of(n).class_count(n) for kind in SOURCES.values() for n in kind.names];"
        "assert kind_of('hfds/beans') and kind_of('wds/pets') and kind_of('.') and not kind_of('nothing/like/it');"
        "assert not {'torch', 'timm', 'torchvision', 'numpy', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.usefixtures("toy")
def test_a_registered_kind_is_trained_on_and_evaluated(cli: Cli) -> None:
    result = cli("train", "quickstart", "data.name=toy", *QUICK)
    assert result.code == 0, result.err
    assert result.json()["images"] == {"train": 21, "validation": 3, "test": 6}
    assert result.json()["params"]["head"] == HEAD
    evaluated = cli("eval", "runs/quickstart", "data.name=toy/2", "--json").json()
    assert evaluated["n"] == 6
    counted = cli("count-params", "quickstart", "data.name=toy/any", "model.head=new", "--json").json()
    assert counted["head"] == HEAD


@pytest.mark.slow
def test_a_sweep_and_its_workers_find_what_an_installed_package_adds(tmp_path: Path) -> None:
    about = tmp_path / "toys-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[superlora]\ntoys = toys\n")
    text = "from superlora_cli.data.known import SOURCES\nfrom tests.data.toy import Toy\nSOURCES.add('toy', Toy())\n"
    (tmp_path / "toys.py").write_text(text)
    settings = "{data.name: toy/4, model.head: new, train.steps: 2, eval.every: 1}"
    (tmp_path / "toys.yaml").write_text(f"recipe: quickstart\nset: {settings}\nseeds: [0]\n")
    words = [sys.executable, "-m", "superlora_cli", "sweep", "toys.yaml", "--out", "swept", "--json"]
    where = environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(words, cwd=tmp_path, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    row = json.loads((tmp_path / "swept" / "results.jsonl").read_text())
    assert (row["status"], row["params"]["head"]) == ("completed", HEAD)


@pytest.mark.usefixtures("toy")
def test_unsupported_names_are_refused_with_the_closest() -> None:
    assert splits_of("toy").class_names == COLOURS
    assert parse_reference("toy:train") == ("toy", "train")
    with pytest.raises(UsageError, match=r"data\.config: 'toy' has no configurations"):
        splits_of("toy", config="small")
    with pytest.raises(UsageError, match=r"unknown data set 'toi', and no such folder here \(did you mean 'toy'\?\)"):
        splits_of("toi")
    examples = "torch/cifar100, hfds/beans, wds/folder-of-shards, vtab/cifar, fgvc/cub200 or toy/8"
    with pytest.raises(UsageError, match=rf"a name such as {examples}\)"):
        splits_of("0/0")
    with pytest.raises(UsageError, match="there already is a kind of data 'toy'"):
        SOURCES.add("toy", Toy())


def test_without_it_nothing_is_left_of_it() -> None:
    assert kind_of("toy/8") is None
