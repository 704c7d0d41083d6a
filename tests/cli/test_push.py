"""A run goes to the hub with a card, and every command takes it from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.reporting.card import Facts, card
from superlora_cli.reporting.runs import read_run
from tests.conftest import Cli, Result, environment
from tests.hub import TOKEN, Hub, hub
from tests.recipe.test_defaults import SECOND
from tests.reporting.folders import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SECOND / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def online(server: Hub, folder: Path, *words: str, token: str | None = TOKEN) -> Result:
    """A command that knows this hub only; the library reads its address when it is imported."""
    own = {**environment(), "HF_ENDPOINT": server.address, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    own = {key: value for key, value in own.items() if key not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    found = subprocess.run(
        [sys.executable, "-m", "superlora_cli", *words], check=False, cwd=folder, capture_output=True, text=True,
        env={**own, **({"HF_TOKEN": token} if token else {})},
    )  # fmt: skip
    return Result(found.returncode, found.stdout, found.stderr)


def test_a_dry_run_writes_what_would_be_pushed(run: Path, cli: Cli) -> None:
    found = cli("push", run, "ada/pets", "--license", "mit", "--dry-run", "--json").json()
    assert found["files"] == ["README.md", "adapter.safetensors", "eval.json", "recipe.yaml"]
    assert {path.name for path in Path("pets").iterdir()} == set(found["files"])
    card = Path("pets/README.md").read_text()
    assert card.startswith("---\n")
    for words in ("license: mit", "568 parameters", "| accuracy (the base alone: 0.5740) | 0.5900 | 0.5900 |",
                  "superlora merge hf-hub:ada/pets", "superlora export hf-hub:ada/pets --to peft-lora",
                  'superlora_cli.load(model, "hf-hub:ada/pets")', "projection: linear_v2", "SHA-256"):  # fmt: skip
        assert words in card
    again = cli("push", run, "ada/pets", "--license", "mit", "--dry-run")
    assert (again.code, "is not an empty folder" in again.err) == (2, True)
    assert cli("push", run, "ada/pets", "--license", "mit", "--dry-run", "--force").code == 0


def test_runs_beside_it_with_other_seeds_are_in_the_results(run: Path, cli: Cli) -> None:
    for seed, accuracy in ((1, 0.7), (2, 0.6)):
        other = Path(shutil.copytree(run, run.with_name(f"run{seed}")))
        about = (other / "run.json").read_text().replace('"seed": 0', f'"seed": {seed}')
        (other / "run.json").write_text(about)
        evaluated = (other / "eval.json").read_text().replace("0.59", str(accuracy))
        (other / "eval.json").write_text(evaluated)
    cli("push", run, "ada/pets", "--license", "mit", "--dry-run")
    card = Path("pets/README.md").read_text()
    assert "| on test data | seed 0 | seed 1 | seed 2 | mean |" in card
    assert "| 0.5900 | 0.7000 | 0.6000 | 0.6300 |" in card


@pytest.mark.parametrize(
    ("recipe", "tag", "use", "merged"),
    [
        ("digits_lora", "image-classification", "eval {} --predict IMAGES", "merged.safetensors"),
        ("digits_unet_lora", "diffusion", "generate {} --out images", "merged.safetensors"),
        ("digits_text_lora", "text-to-image", 'generate {} --prompt "..." --out images', "merged  # a pipeline"),
        ("pretrain_glyphs_text_vae", "autoencoder", "eval {}\n", "merged  # a pipeline"),
        ("sums_roman_lora", "text-generation", 'generate {} --prompt "..."\n', "merged  # for transformers"),
    ],
)
def test_a_card_says_what_its_task_is_for(recipe: str, tag: str, use: str, merged: str, tmp_path: Path) -> None:
    ran = read_run(make_run(tmp_path / "run", recipe))
    stored: Any = SimpleNamespace(
        config=AdapterConfig(), base={"name": "b", "sha256": "0"}, patterns=("q",), classes=()
    )  # fmt: skip
    text = card(Facts("ada/pets", [ran], stored, "", "mit"))
    assert f"- {tag}\n" in text
    assert f"superlora {use.format('hf-hub:ada/pets')}" in text
    assert f"superlora merge hf-hub:ada/pets --out {merged}" in text


@pytest.mark.slow
def test_what_is_pushed_can_be_used_by_its_name(run: Path, server: Hub, tmp_path: Path) -> None:
    pushed = online(server, tmp_path, "push", "run", "ada/pets", "--license", "mit", "--private", "--json")
    assert pushed.code == 0, pushed.err
    done = pushed.json()
    content = server.repositories["ada/pets"]["main"]
    assert content["adapter.safetensors"] == (run / "adapter.safetensors").read_bytes()
    assert sorted(content) == done["files"]
    assert server.private == {"ada/pets"}
    found = online(server, tmp_path, "inspect", f"hf-hub:ada/pets@{done['commit']}", "--json")
    assert found.code == 0, found.err
    assert found.json()["params"]["adapter"] == 568
    merged = online(server, tmp_path, "merge", "hf-hub:ada/pets", "--out", "merged.safetensors", "--no-verify")
    assert merged.code == 0, merged.err
    assert (tmp_path / "merged.safetensors").is_file()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in text for text in (*written, *content.values()))
    assert TOKEN not in pushed.out + pushed.err + found.out + found.err


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_clear_line(run: Path, server: Hub, tmp_path: Path) -> None:
    for words, token, cause in (
        (("push", "run", "ada/cars", "--license", "mit"), "hf_wrong", "the hub answers 401"),
        (("inspect", "hf-hub:ada/nothing"), TOKEN, "the hub answers 401"),
    ):
        found = online(server, tmp_path, *words, token=token)
        assert (found.code, cause in found.err) == (2, True), found.err
        assert len(found.err.splitlines()) == 1, found.err
        assert token not in found.err


REFUSED = {
    ("push", "run", "pets", "--license", "mit"): "'pets' is not a name on the hub (USER/NAME",
    ("push", "run", "ada/pets"): "a licence is needed",
    ("push", "run", "ada/pets", "--out", "there"): "--out: needs --dry-run",
    ("push", "nothing", "ada/pets", "--license", "mit", "--dry-run"): "nothing: no such run folder",
    ("inspect", "hf-hub:pets"): "'pets' is not a name on the hub",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_a_wrong_call_is_one_clear_line(words: tuple[str, ...], run: Path, cli: Cli) -> None:
    found = cli(*words)
    assert (found.code, REFUSED[words] in found.err) == (2, True), found.err


def test_without_a_network_one_line_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superlora_cli.models.hub.reachable", lambda address: False)
    found = cli("eval", "hf-hub:ada/pets")
    assert (found.code, "cannot be reached" in found.err) == (2, True), found.err
