"""Every image is predicted by its own adapter, as if that adapter had predicted it alone."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from superlora_cli.adapter import store
from superlora_cli.commands.assign import _recipe
from superlora_cli.errors import MismatchError
from superlora_cli.opening.base import open_base
from superlora_cli.opening.build import recipe_of
from superlora_cli.opening.switching import MOST, Switching
from tests.conftest import Cli, run_cli

KINDS = {  # two of one kind, one of another, one with another head
    "one": "{method: lorta, rank: 1}",
    "two": "{method: lorta, rank: 1}",
    "other": "{order: 2, rank: 1}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters as files and a run, images, and a table."""
    folder = tmp_path_factory.mktemp("assign")
    digits = load_digits()
    for number in range(12):
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9375).astype("uint8")).save(folder / "images" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, (name, adapter) in enumerate(KINDS.items()):
            words = (f"adapter={adapter}", f"seed={seed}", "adapter.seed=0", "model.head=new")
            found = run_cli("train", "quickstart", *words, "train.steps=3", "eval.every=3", "--out", name, "--quiet")
            assert found.code == 0, found.err
        Path("adapters").mkdir()
        for name in ("one", "other"):
            shutil.copy(f"{name}/adapter.safetensors", f"adapters/{name}.safetensors")
        shutil.copytree("two", "adapters/two")
        names = [list(KINDS)[index % 3] for index in range(12)]
        with open("table.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file", "adapter"), *((f"images/{i}.png", n) for i, n in enumerate(names))])
    return folder


def rows_of(file: Path) -> dict[str, tuple[str, str]]:
    with file.open() as text:
        return {Path(row["file"]).name: (row["class"], row["probability"]) for row in csv.DictReader(text)}


@pytest.mark.slow
def test_each_image_is_predicted_as_by_its_adapter_alone(place: Path, cli: Cli) -> None:
    words = ("--assign", place / "table.csv", "--adapters", place / "adapters")
    found = cli("eval", "eval.batch_size=3", "data.workers=0", *words, "--out", "all.csv", "--json").json()
    assert (found["n"], found["adapters"]) == (12, {"one": 4, "two": 4, "other": 4})
    mixed = rows_of(Path("all.csv"))
    assert list(mixed) == [f"{index}.png" for index in range(12)]
    for number, name in enumerate(KINDS):
        assert cli("eval", place / name, "--predict", place / "images", "--out", f"{name}.csv").code == 0
        alone = rows_of(Path(f"{name}.csv"))
        for index in range(number, 12, 3):
            (ours, probability), (theirs, expected) = mixed[f"{index}.png"], alone[f"{index}.png"]
            assert ours == theirs
            assert float(probability) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.slow
def test_adapters_of_a_kind_share_a_module(place: Path) -> None:
    stored = {name: store.load(place / name / "adapter.safetensors") for name in KINDS}
    model = open_base(recipe_of(stored["one"], place), stored["one"]).model
    switching = Switching(model)
    first = switching.use(stored["one"], "one")
    assert switching.use(stored["two"], "two") is first
    assert all((first.factors[name] == tensor).all() for name, tensor in stored["two"].factors.items())
    assert (model.get_parameter("head.weight") == stored["two"].head["head.weight"]).all()
    assert switching.use(stored["other"], "other") is not first
    for alpha in range(MOST + 1):
        other = store.StoredAdapter(**{**vars(stored["one"]), "config": _scaled(stored["one"], alpha + 1.0)})
        switching.use(other, "scaled")
    assert len(model.superlora.named) == MOST  # type: ignore[union-attr, arg-type]


def _scaled(stored: store.StoredAdapter, alpha: float) -> object:
    return replace(stored.config, alpha=alpha)


WRONG = {
    "file,adapter\na.png,on\n": "unknown adapter: on (did you mean 'one'?)",
    "file,name\na.png,one\n": "has no column 'adapter' (a first line file,adapter)",
    "file,adapter\n": "has no rows",
    "file,adapter\na.png,\n": "t.csv:2: a row without file or adapter",
    "file,adapter\nnothing.png,one\n": "none of 1 images can be read",
}


@pytest.mark.slow
@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_table_is_one_clear_line(text: str, place: Path, cli: Cli) -> None:
    Path("t.csv").write_text(text)
    found = cli("eval", "--assign", "t.csv", "--adapters", place / "adapters")
    assert (found.code, WRONG[text] in found.err) == (2, True), found.err
    assert not Path("t-predictions.csv").exists()


def test_both_image_sizes_are_named_where_adapters_differ(tmp_path: Path) -> None:
    stored = store.load(Path(__file__).parents[1] / "project" / "written_before" / "classifier.safetensors")
    data = {**stored.recipe["data"], "image_size": 32}
    others = {"one": stored, "two": replace(stored, recipe={**stored.recipe, "data": data})}
    with pytest.raises(MismatchError, match="another image size than one: 32 and the own size of its base") as caught:
        _recipe(others, {name: tmp_path / name for name in others}, ())
    assert caught.value.hint == "one table for each image size"


REFUSED = {
    ("eval", "--assign", "t.csv"): "--assign: needs --adapters",
    ("eval", "run", "--assign", "t.csv", "--adapters", "there"): "RUN_OR_ADAPTER: cannot be used with --assign",
    ("eval", "--assign", "t.csv", "--allow-base-mismatch"): "--allow-base-mismatch: cannot be used with --assign",
    ("eval", "--assign", "t.csv", "--lm-eval", "piqa"): "--lm-eval: cannot be used with --assign",
    ("eval", "run", "train.device=cpu", "--assign", "t.csv"): "RUN_OR_ADAPTER: cannot be used with --assign",
    ("eval", "train.device=cpu", "--assign", "t.csv", "--adapters", "there"): "t.csv: cannot be read",
    ("eval", "run", "--adapters", "there"): "--adapters: needs --assign",
    ("eval",): "a run or an adapter is needed",
    ("eval", "--assign", "t.csv", "--adapters", "there"): "t.csv: cannot be read",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_wrong_call_is_one_clear_line(words: tuple[str, ...], cli: Cli) -> None:
    found = cli(*words)
    assert (found.code, REFUSED[words] in found.err) == (2, True), found.err


@pytest.mark.slow
def test_a_compiled_model_is_not_compiled_again(place: Path) -> None:
    stored = [store.load(place / name / "adapter.safetensors") for name in ("one", "two")]
    model = open_base(recipe_of(stored[0], place), stored[0]).model.eval()
    switching, images, made = Switching(model), torch.randn(2, 3, 16, 16), []

    def noted(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph

    compiled = torch.compile(model, backend=noted)
    with torch.no_grad():
        for one in stored:
            switching.use(one, "one")
            compiled(images)
            if one is stored[0]:
                made.clear()
        torch.testing.assert_close(compiled(images), model(images))
    assert made == []
