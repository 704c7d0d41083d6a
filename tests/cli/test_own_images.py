"""A user's own folder of images: from `init` over training to per-class accuracy and predictions."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import nn

from superlora_cli.models.build import build
from superlora_cli.recipe.load import load_recipe
from superlora_cli.recipe.schema import ModelSection
from superlora_cli.recipe.yaml import read_yaml
from tests.conftest import Cli, run_cli

pytestmark = pytest.mark.slow

NAMES = ("zero", "one", "two", "three")
WORDS = ("model.pretrained=true", "train.steps=60", "train.threads=1", "data.augment=none", "data.workers=0",
         "train.optimizer={name: AdamW, lr: 0.02}", "train.scheduler={name: OneCycleLR}")  # fmt: skip


def write_digits(folder: Path, each: int, names: tuple[str, ...] = NAMES, skip: int = 0) -> None:
    """`each` handwritten digits of every class, as PNG files in a folder per class."""
    digits = load_digits()
    for name in names:
        number = NAMES.index(name)
        (folder / name).mkdir(parents=True)
        images = [image for image, target in zip(digits.images, digits.target, strict=True) if target == number]
        for index, image in enumerate(images[skip : skip + each]):
            pixels = torch.from_numpy(image * 15.9).to(torch.uint8).numpy()
            Image.fromarray(pixels).resize((16, 16)).save(folder / name / f"{index}.png")


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `numbers/` and the finished run `run/` that `init`'s recipe gave; read only."""
    place = tmp_path_factory.mktemp("own")
    write_digits(place / "numbers" / "train", 60)
    write_digits(place / "numbers" / "test", 20, skip=100)
    with contextlib.chdir(place):
        made = run_cli("init", "--model", "glyphs_vit", "--data", "numbers")
        assert made.code == 0, made.err
        trained = run_cli("train", "numbers.yaml", *WORDS, "--out", "run", "--quiet")
        assert trained.code == 0, trained.err
    return place


def test_the_recipe_that_init_writes_trains_as_it_stands(own: Path, cli: Cli) -> None:
    recipe = load_recipe(own / "numbers.yaml")
    assert (recipe.model.name, recipe.data.name, recipe.model.head) == ("glyphs_vit", "numbers", "new")
    about = json.loads((own / "run/run.json").read_text())
    assert recipe.eval.every is None  # 24 validation images choose no step
    assert about["metrics"]["best_step"] == about["steps"]
    header = (own / "numbers.yaml").read_text().splitlines()[:2]
    assert header[0] == "# glyphs_vit on the images in numbers: 4 classes, 216 training images."
    assert f"{about['params']['adapter']:,} parameters + head {about['params']['head']:,}" in header[1]
    assert about["metrics"]["accuracy"] > 0.8


@pytest.mark.parametrize("name", ["digits", "off", "a: b", "1e5"])
def test_a_folder_of_any_name_is_found_again(name: str, cli: Cli) -> None:
    write_digits(Path(name), 4)
    assert cli("init", "--model", "glyphs_vit", "--data", name, "--out", "mine.yaml").code == 0
    data = load_recipe("mine.yaml").data.name
    assert Path(data).is_dir()
    assert data not in ("digits", "glyphs")


def test_init_says_what_it_wrote_and_overwrites_nothing(own: Path, cli: Cli) -> None:
    shutil.copytree(own / "numbers", "numbers")
    made = cli("init", "--model", "glyphs_vit", "--data", "numbers", "--out", "mine.yaml", "--json").json()
    assert made["recipe"] == "mine.yaml"
    assert (made["classes"], made["images"]) == (4, 216)
    assert made["params"]["head"] == 4 * 64 + 4
    before = Path("mine.yaml").read_bytes()
    again = cli("init", "--model", "glyphs_vit", "--data", "numbers", "--out", "mine.yaml")
    assert again.code == 2
    assert "--force" in again.message
    assert Path("mine.yaml").read_bytes() == before
    assert cli("train", "mine.yaml", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("vit_tiny_patch16_224", ["q", "v"]),
        ("convnext_tiny", ["mlp"]),
        ("resnet18", ["*conv*"]),
        ("efficientvit_b0", ["*conv*"]),
        ("rdnet_tiny", ["dense_stages.*"]),
        ("vgg11", ["features.*", "pre_logits.*"]),
        ("iformer_t", ["stem.*", "stages.*"]),  # whose stem alone has names with `conv`
        ("efficientformerv2_s0", ["q", "v"]),
    ],
)
def test_init_adapts_what_the_model_has(model: str, targets: list[str], own: Path, cli: Cli) -> None:
    shutil.copytree(own / "numbers", "numbers")
    assert cli("init", "--model", model, "--data", "numbers", "--no-pretrained").code == 0
    assert read_yaml("numbers.yaml").data["adapter"]["targets"] == targets
    assert load_recipe("numbers.yaml").model.pretrained is False


SIZED = "vit_small_patch14_dinov2.lvd142m"  # made for 518 pixels, and told its size when it is built


@pytest.mark.parametrize(
    ("model", "asked", "size", "kwargs"),
    [(SIZED, (), 224, {"img_size": 224}), (SIZED, ("--image-size", 56), 56, {"img_size": 56}),
     (SIZED, ("--image-size", 518), None, {}), ("convnext_atto", ("--image-size", 96), 96, {}),
     ("resnet18", ("--image-size", 32), 32, {}),  # one pixel at its end, which BatchNorm would not train on
     ("convnext_atto", (), None, {})],
)  # fmt: skip
def test_init_chooses_a_size_that_a_cpu_can_train(
    model: str, asked: tuple[str | int, ...], size: int | None, kwargs: dict[str, int], own: Path, cli: Cli
) -> None:
    shutil.copytree(own / "numbers", "numbers")
    assert cli("init", "--model", model, "--data", "numbers", "--no-pretrained", *map(str, asked)).code == 0
    recipe = load_recipe("numbers.yaml")
    assert (recipe.data.image_size, recipe.model.kwargs) == (size, kwargs)
    assert ("too much without a GPU" in Path("numbers.yaml").read_text()) == (size == 224)


def test_init_refuses_a_size_that_the_model_cannot_have(own: Path, cli: Cli) -> None:
    result = cli("init", "--model", SIZED, "--data", own / "numbers", "--no-pretrained", "--image-size", "5")
    assert result.code == 2
    assert result.message
    assert not Path("numbers.yaml").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "nowhere"), "nowhere: no such folder or file (give a folder with one sub-folder"),
        (("--data", "numbers", "--model", "vit_bsae_patch16_224"), "did you mean 'vit_base_patch16_224'?"),
        (("--data", "numbers", "--out", "no/where.yaml"), "no: no such folder"),
    ],
)
def test_init_refuses_what_cannot_be_in_one_line(words: tuple[str, ...], says: str, own: Path, cli: Cli) -> None:
    shutil.copytree(own / "numbers", "numbers")
    result = cli("init", *words)
    assert result.code == 2
    assert says in result.message
    assert sorted(path.name for path in Path().iterdir()) == ["numbers"]


def test_class_names_travel_in_the_adapter_and_eval_shows_each_class(own: Path, cli: Cli) -> None:
    adapter = own / "run/adapter.safetensors"
    with safe_open(adapter, framework="pt") as file:
        assert json.loads(file.metadata()["superlora.classes"]) == sorted(NAMES)
    overrides = (f"data.name={own / 'numbers'}",)
    found = cli("eval", adapter, *overrides, "--json").json()
    assert [row["class"] for row in found["per_class"]] == sorted(NAMES)
    assert [row["n"] for row in found["per_class"]] == [20] * 4
    mean = sum(row["accuracy"] for row in found["per_class"]) / 4
    assert mean == pytest.approx(found["metrics"]["accuracy"])
    shown = cli("eval", adapter, *overrides).out
    assert all(name in shown for name in NAMES)
    assert "four" not in cli("inspect", adapter).out
    assert cli("inspect", adapter, "--json").json()["classes"] == sorted(NAMES)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_confusion_matrix_is_a_picture(ending: str, own: Path, cli: Cli) -> None:
    assert cli("eval", own / "run", f"data.name={own / 'numbers'}", "--plot", f"confusion.{ending}").code == 0
    content = Path(f"confusion.{ending}").read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        assert b"taken for" in content or b"true class" in content or len(content) > 5_000
    refused = cli("eval", own / "run", f"data.name={own / 'numbers'}", "--plot", "confusion.docx")
    assert refused.code == 2
    assert "cannot write the plot" in refused.message


def test_data_with_fewer_classes_are_labelled_by_name(own: Path, cli: Cli) -> None:
    some = ("two", "zero")
    write_digits(Path("some/train"), 5, some)
    write_digits(Path("some/test"), 20, some, skip=100)
    all_classes = cli("eval", own / "run", f"data.name={own / 'numbers'}", "--json").json()["per_class"]
    found = cli("eval", own / "run", "data.name=some", "--json").json()["per_class"]
    assert found == [row for row in all_classes if row["class"] in some]


def test_data_with_some_classes_that_are_numbers_are_labelled_by_number(trained: Path, cli: Cli) -> None:
    """A file does not store names that are the numbers of the outputs."""
    for folder, names in (("all", NAMES), ("some", NAMES[2:])):
        write_digits(Path(folder, "train"), 5, names)
        write_digits(Path(folder, "test"), 20, names, skip=100)
        for path in sorted(Path(folder).glob("*/*")):
            path.rename(path.parent / str(NAMES.index(path.name)))
    all_classes, some = (cli("eval", trained, f"data.name=./{data}", "--json").json() for data in ("all", "some"))
    assert some["per_class"] == [row for row in all_classes["per_class"] if row["class"] in "23"]
    Path("some/train/3").rename("some/train/12")
    Path("some/test/3").rename("some/test/12")
    assert "the model has no class '12'" in cli("eval", trained, "data.name=./some").message


def test_data_with_fewer_classes_are_trained_by_name(own: Path, cli: Cli) -> None:
    write_digits(Path("some/train"), 30, ("two", "zero"))
    write_digits(Path("some/test"), 20, ("two", "zero"), skip=100)
    found = cli("compress", own / "run", "--bits", "8", "--tune", "30", "--out", "c", "data.name=some", "--json").json()
    assert found["metrics"]["accuracy"] > found["metrics_before"]["accuracy"] - 0.05


def test_a_class_that_the_model_does_not_know_is_named(own: Path, cli: Cli) -> None:
    write_digits(Path("other"), 5, ("one",))
    (Path("other") / "one").rename(Path("other") / "oen")
    result = cli("eval", own / "run", "data.name=other")
    assert result.code == 2
    assert "the model has no class 'oen' (did you mean 'one'?)" in result.message


def test_predictions_are_a_table_of_files_and_classes(own: Path, cli: Cli) -> None:
    write_digits(Path("new"), 12, skip=130)
    (Path("new") / "broken.png").write_bytes(b"no image")
    (Path("new") / "notes.txt").write_text("not an image")
    write_digits(Path("new/__MACOSX"), 1)
    (Path("new") / "one" / "._0.png").write_bytes(b"of macOS")
    found = cli("eval", own / "run", "--predict", "new", "--json").json()
    assert (found["predictions"], found["n"]) == ("new.csv", 48)
    assert [file["path"] for file in found["unreadable"]] == ["broken.png"]
    with open("new.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "probability", "second", "second_probability"]
    assert [row["file"] for row in rows[:3]] == ["one/0.png", "one/1.png", "one/2.png"]
    assert sum(row["class"] == row["file"].partition("/")[0] for row in rows) / len(rows) > 0.8
    assert sum(found["classes"].values()) == len(rows) == 48
    assert all(float(row["probability"]) >= float(row["second_probability"]) for row in rows)
    shown = cli("eval", own / "run", "--predict", "new", "--out", "other.csv")
    assert "broken.png" in shown.out
    assert Path("other.csv").read_bytes() == Path("new.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--predict", "nowhere"), "nowhere: no such folder"),
        (("--predict", "empty"), "empty: holds no images"),
        (("--predict", "broken"), "broken: none of 1 images can be read"),
        (("--predict", "broken", "--out", "taken.csv"), "taken.csv: the file exists"),
        (("--predict", "broken", "--out", "nowhere/x.csv"), "nowhere: no such folder"),
        (("--predict", "broken", "--out", "no/where.csv"), "no: no such folder"),
        (("--predict", "broken", "--plot", "x.svg"), "--predict has no true classes"),
        (("--out", "x.csv"), "--out: needs --predict or --against"),
        (("--plot", "no/x.svg"), "no: no such folder"),
    ],
)
def test_eval_refuses_what_cannot_be_in_one_line(words: tuple[str, ...], says: str, own: Path, cli: Cli) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no image")
    Path("taken.csv").write_text("mine")
    result = cli("eval", own / "run", *words)
    assert result.code == 2
    assert says in result.message
    assert Path("taken.csv").read_text() == "mine"


# Heads


def test_a_selected_head_is_the_named_rows_in_their_order(tmp_path: Path) -> None:
    rows = load_recipe("vit_cifar10_lora").model.head.select  # type: ignore[union-attr]
    small = {"embed_dim": 8, "depth": 1, "num_heads": 1, "img_size": 32}
    whole = build(
        ModelSection(name="vit_tiny_patch16_224", pretrained=False, head="frozen", kwargs=small), classes=None
    ).model
    with torch.no_grad():
        marks = torch.arange(1000.0)
        whole.head.weight.copy_(marks[:, None].expand(1000, 8))  # type: ignore[union-attr,operator]
        whole.head.bias.copy_(-marks)  # type: ignore[union-attr,operator]
    from safetensors.torch import save_file

    save_file(whole.state_dict(), tmp_path / "marked.safetensors")
    section = ModelSection(
        name="vit_tiny_patch16_224",
        checkpoint=str(tmp_path / "marked.safetensors"),
        head={"select": rows},
        kwargs=small,
    )  # type: ignore[arg-type]
    chosen = build(section, classes=10).model
    assert isinstance(chosen.head, nn.Linear)
    assert chosen.head.weight[:, 0].tolist() == rows == [404, 436, 94, 284, 345, 207, 32, 340, 510, 867]
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(chosen.eval()(images), whole.eval()(images)[:, rows])
