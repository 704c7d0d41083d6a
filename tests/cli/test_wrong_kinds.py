"""Whatever is given where something else is wanted is named as what it is, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from superlora_cli.kinds import Kind, kind_of
from superlora_cli.recipe.load import shipped_recipes, shipped_sweeps
from tests.conftest import Cli, contents

THINGS = {
    "recipe.yaml": Kind.RECIPE,
    "sweep.yaml": Kind.SWEEP,
    "adapter.safetensors": Kind.ADAPTER,
    "base.safetensors": Kind.MODEL,
    "plain.safetensors": Kind.WEIGHTS,
    "index.json": Kind.INDEX,
    "state.pt": Kind.TORCH,
    "cat.png": Kind.IMAGE,
    "run.json": Kind.JSON,
    "notes.txt": Kind.TEXT,
    "runs/one": Kind.RUN,
    "runs/one/checkpoints/step-000006": Kind.CHECKPOINT,
    "swept": Kind.SWEEP_FOLDER,
    "runs": Kind.RUNS,
    "pets": Kind.IMAGES,
    "shards": Kind.SHARDS,
    "peft": Kind.PEFT,
    "empty": Kind.FOLDER,
}
RESULTS = {Kind.RUN, Kind.ADAPTER, Kind.CHECKPOINT, Kind.FOLDER}  # of a folder is said what it should hold
WEIGHTS = {
    Kind.MODEL,
    Kind.WEIGHTS,
    Kind.INDEX,
    Kind.JSON,
    Kind.SHARDS,
    Kind.RUN,
    Kind.CHECKPOINT,
    Kind.FOLDER,
}  # likewise
FILES = {Kind.TEXT, Kind.JSON}  # of which the reader of YAML says what is wrong, line by line
IN = "{}"
COMMANDS: dict[str, tuple[tuple[str, ...], set[Kind]]] = {  # what takes what
    "train": (("train", IN), {Kind.RECIPE, *FILES}),
    "validate": (("validate", IN), {Kind.RECIPE, *FILES}),
    "count-params": (("count-params", IN), {Kind.RECIPE, *FILES}),
    "sweep": (("sweep", IN, "--out", "new"), {Kind.SWEEP, *FILES}),
    "eval": (("eval", IN), {*RESULTS, Kind.MODEL}),
    "predict": (("eval", "adapter.safetensors", "--predict", IN), {Kind.IMAGES, Kind.FOLDER, Kind.RUNS}),
    "inspect": (("inspect", IN), RESULTS),
    "generate": (("generate", IN, "--out", "new"), {*RESULTS, Kind.MODEL}),
    "merge": (("merge", IN, "--out", "new.safetensors"), RESULTS),
    "merge --base": (
        ("merge", "adapter.safetensors", "--base", IN, "--out", "new.safetensors"),
        {*WEIGHTS, Kind.TORCH},
    ),
    "export": (("export", IN, "--to", "delta", "--out", "new.safetensors"), RESULTS),
    "combine": (("combine", "adapter.safetensors", IN, "--out", "new.safetensors"), RESULTS),
    "import": (("import", IN, "--base", "glyphs_vit", "--out", "new.safetensors"), {Kind.WEIGHTS, Kind.PEFT}),
    "extract": (
        ("extract", "quickstart", "--tuned", IN, "--out", "new.safetensors"),
        WEIGHTS,
    ),
    "report": (("report", IN), {Kind.RUN, Kind.RUNS, Kind.SWEEP_FOLDER, Kind.FOLDER}),
    "init": (("init", "--data", IN, "--out", "new.yaml"), {Kind.IMAGES, Kind.FOLDER, *FILES}),
}


@pytest.fixture
def things(cli: Cli, trained: Path) -> None:
    shutil.copy(shipped_recipes()["quickstart"], "recipe.yaml")
    shutil.copy(shipped_sweeps()["digits_fig15"], "sweep.yaml")
    shutil.copytree(trained, "runs/one")
    shutil.copy("runs/one/adapter.safetensors", ".")
    save_file({"weight": torch.ones(2)}, "base.safetensors", {"superlora.model_recipe": "{}"})
    save_file({"weight": torch.ones(2)}, "plain.safetensors")
    Path("index.json").write_text(json.dumps({"weight_map": {"weight": "plain.safetensors"}}))
    shutil.copy("runs/one/checkpoints/step-000006/state.pt", "state.pt")
    Image.new("RGB", (8, 8)).save("cat.png")
    shutil.copy("runs/one/run.json", "run.json")
    Path("notes.txt").write_text("buy milk\n")
    Path("swept/runs").mkdir(parents=True)
    shutil.copy("sweep.yaml", "swept/sweep.yaml")
    for folder in ("pets/cat", "shards", "peft", "empty"):
        Path(folder).mkdir(parents=True)
    shutil.copy("cat.png", "pets/cat")
    shutil.copy("plain.safetensors", "shards/model-00001.safetensors")
    Path("peft/adapter_config.json").write_text("{}")


def test_everything_is_known_by_what_it_is(things: None) -> None:
    assert {name: kind_of(Path(name)) for name in THINGS} == THINGS
    Path("noise").write_bytes(bytes(range(200, 256)))
    Path("nothing").touch()
    assert {kind_of(Path(name)) for name in ("noise", "nothing", "missing", "/dev/null")} == {None}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_thing_is_named(command: str, things: None, cli: Cli) -> None:
    words, taken = COMMANDS[command]
    start = list(COMMANDS).index(command) % 3  # a third of the things for each, all of them for three in a row
    before = contents(Path())
    for name, kind in list(THINGS.items())[start::3]:
        if kind not in taken:
            result = cli(*(word.format(name) for word in words))
            assert result.code == 2, name
            assert name in result.message
            assert str(kind) in result.message
    assert contents(Path()) == before


@pytest.mark.parametrize("command", ["inspect", "merge", "export", "combine"])
def test_a_model_is_no_adapter(command: str, things: None, cli: Cli) -> None:
    result = cli(*(word.format("base.safetensors") for word in COMMANDS[command][0]))
    assert result.code == 2
    assert "base.safetensors" in result.message
    assert str(Kind.MODEL) in result.message


def test_the_input_is_looked_at_before_the_output(things: None, cli: Cli) -> None:
    for words in (
        ("merge", "missing", "--out", "runs"),
        ("export", "missing", "--to", "delta", "--out", "runs"),
        ("combine", "missing", "--out", "runs"),
        ("eval", "missing", "--predict", "pets", "--out", "notes.txt"),
        ("generate", "./missing", "--out", "runs"),
        ("extract", "quickstart", "--tuned", "missing", "--out", "runs"),
        ("import", "missing", "--base", "glyphs_vit", "--out", "runs"),
        ("init", "--data", "missing", "--out", "notes.txt"),
    ):
        assert "missing: no such" in cli(*words).message
        assert "runs" not in cli(*words).message


def test_a_recipe_that_does_not_fit_its_model_is_not_valid(things: None, cli: Cli) -> None:
    result = cli("validate", "recipe.yaml", "adapter.rank=9999")
    assert result.code == 2
    assert "recipe.yaml: adapter.rank: rank 9999 is larger than a side of 9" in result.message
    assert "adapter.targets" in cli("validate", "recipe.yaml", "adapter.targets=[qq]").message
    assert cli("validate", "recipe.yaml").code == 0


def test_names_are_found_in_any_case(things: None, cli: Cli) -> None:
    said = cli("train", "recipe.yaml", "train.optimizer.name=adamw").message
    assert "unknown optimizer 'adamw' (did you mean 'AdamW'?)" in said
