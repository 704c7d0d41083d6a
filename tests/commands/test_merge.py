"""Merging checkpoints as they lie on a disk: what is written, what is left alone, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from superlora_cli.adapter.delta import deltas
from superlora_cli.adapter.frozen import Frozen
from superlora_cli.adapter.layout import plan
from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.models.embedded import ASSETS
from superlora_cli.weights.reading import open_weights
from superlora_cli.weights.writing import Draft
from tests.conftest import QUICK, Cli, contents
from tests.weights.checkpoints import METADATA, TARGETS, checkpoint, prepare, save_shards, thirds

GLYPHS = ASSETS / "glyphs_vit.safetensors"
WEIGHTS = {f"{target.module}.weight" for target in TARGETS}
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def updates(stored: StoredAdapter) -> dict[str, Tensor]:
    """ΔW by weight, all made at once."""
    layout = plan(stored.config, [target.flat for target in TARGETS])
    made = deltas(layout, dict(stored.factors), Frozen(layout))
    return {f"{target.module}.weight": delta for target, delta in zip(TARGETS, made, strict=True)}


def raw(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes."""
    with open_weights(path) as weights:
        return {n: weights.tensor(n).flatten().view(torch.uint8).numpy().tobytes() for n in weights.names}


@EVERY_DTYPE
@pytest.mark.parametrize(
    "knobs",
    [{"groups": 2}, {"groups": "weight"}, {"groups": 5, "order": 2}, {"projection": "nonlinear", "ratio": 0.3}],
    ids=str,
)
def test_a_file_gets_the_update_in_float32_cast_once(dtype: torch.dtype, knobs: dict[str, Any], cli: Cli) -> None:
    stored = prepare(dtype, **knobs)
    found = cli("merge", "adapter.safetensors", "--base", "base.safetensors", "--out", "out.safetensors", "--json")
    done = found.json()
    assert done["verified"] is True
    assert done["compared"] == "of tensors"
    assert done["tensors_changed"] == len(TARGETS)
    base, after, made = checkpoint(dtype), load_file("out.safetensors"), updates(stored)
    assert list(after) == list(load_file("base.safetensors"))
    for name, tensor in base.items():
        assert after[name].dtype == tensor.dtype
        exact = tensor.float() + made[name] if name in made else tensor
        off = (after[name].float() - exact.float()).abs()
        allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6 if name in made else torch.zeros_like(exact)
        assert (off <= allowed).all(), name


@EVERY_DTYPE
def test_untouched_tensors_metadata_and_header_keep_every_byte(dtype: torch.dtype, cli: Cli) -> None:
    prepare(dtype)
    assert cli("merge", "adapter.safetensors", "--base", "base.safetensors", "--out", "out.safetensors").code == 0
    before, after = raw(Path("base.safetensors")), raw(Path("out.safetensors"))
    assert {name for name in before if before[name] != after[name]} == WEIGHTS
    with open_weights(Path("base.safetensors")) as base, open_weights(Path("out.safetensors")) as out:
        assert out.metadata == METADATA
        assert out.shards[0].header.raw == base.shards[0].header.raw


@EVERY_DTYPE
@pytest.mark.parametrize("base", ["big", "big/model.safetensors.index.json"])
def test_shards_are_merged_into_the_same_shards_with_the_same_bytes(base: str, dtype: torch.dtype, cli: Cli) -> None:
    prepare(dtype)
    Path("big/config.json").write_text("{}")
    Path("big/weights.bin").write_bytes(b"of another kind")
    assert cli("merge", "adapter.safetensors", "--base", "base.safetensors", "--out", "one.safetensors").code == 0
    done = cli("merge", "adapter.safetensors", "--base", base, "--out", "merged", "--json").json()
    assert done["verified"] is True
    assert raw(Path("merged")) == raw(Path("one.safetensors"))
    big, merged = contents(Path("big")), contents(Path("merged"))
    assert merged.keys() == big.keys() - {"weights.bin"}
    assert merged["model.safetensors.index.json"] == big["model.safetensors.index.json"]
    assert "from_pretrained('merged')" in done["load"]
    for name in (name for name in merged if name.endswith(".safetensors")):
        with open_weights(Path("merged", name)) as weights:
            assert weights.metadata == METADATA


@EVERY_DTYPE
@pytest.mark.parametrize(("base", "merged", "out"), [("base.safetensors", "m.safetensors", "u.safetensors"),
                                                     ("big", "merged", "unmerged")])  # fmt: skip
def test_unmerging_restores_the_base_within_the_reported_rounding(
    base: str, merged: str, out: str, dtype: torch.dtype, cli: Cli
) -> None:
    prepare(dtype)
    assert cli("merge", "adapter.safetensors", "--base", base, "--out", merged).code == 0
    done = cli("merge", "adapter.safetensors", "--base", merged, "--unmerge", "--out", out, "--json").json()
    largest = 0.0
    with open_weights(Path(out)) as restored, open_weights(Path(merged)) as before:
        for name, tensor in checkpoint(dtype).items():
            off = (restored.tensor(name).double() - tensor.double()).abs()
            if name not in WEIGHTS:
                assert off.max() == 0
                continue
            rounding = torch.finfo(dtype).eps / 2 * (before.tensor(name).double().abs() + tensor.double().abs())
            assert (off <= rounding * 1.01 + 1e-7).all()
            largest = max(largest, off.max().item())
    assert 0 < largest <= done["rounding_bound"] < 100 * torch.finfo(dtype).eps
    assert "at most" in cli("merge", "adapter.safetensors", "--base", merged, "--unmerge", "--out", f"again-{out}").out


def test_unmerging_is_compared_with_the_base_if_available(adapter: Path, cli: Cli) -> None:
    assert cli("merge", adapter, "--out", "m.safetensors").code == 0
    words = ("merge", adapter, "--unmerge", "--out", "u.safetensors")
    done = cli(*words, "--base", "m.safetensors", "--json").json()
    assert done["verified"] is True
    assert done["compared"] == "from the base"
    assert done["max_abs_error"] <= done["rounding_bound"] < 1e-6
    result = cli(*words, "--base", GLYPHS, "--force")  # never merged
    assert result.code == 3
    assert "the unmerged weights differ from the base by" in result.message


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_casts_all_floating_point_tensors_once(dtype: str, cli: Cli) -> None:
    prepare()
    words = ("merge", "adapter.safetensors", "--dtype", dtype, "--json")
    assert cli("merge", "adapter.safetensors", "--base", "big", "--out", "exact", "--no-verify").code == 0
    assert cli(*words, "--base", "big", "--out", "half").json()["verified"] is True
    assert cli(*words, "--base", "base.safetensors", "--out", "half.safetensors").json()["verified"] is True
    wanted = getattr(torch, dtype)
    with open_weights(Path("half")) as half, open_weights(Path("exact")) as exact:
        for name in exact.names:
            cast = exact.tensor(name).to(wanted) if exact.dtype(name).is_floating_point else exact.tensor(name)
            assert half.dtype(name) == cast.dtype
            assert torch.equal(half.tensor(name), cast)
        size = sum(half.entry(name).bytes for name in half.names)
    assert json.loads(Path("half/model.safetensors.index.json").read_text())["metadata"]["total_size"] == size
    assert raw(Path("half")) == raw(Path("half.safetensors"))


def test_a_number_too_large_for_the_dtype_is_refused(cli: Cli) -> None:
    prepare()
    base = load_file("base.safetensors") | {"model.norm.weight": torch.full((16,), 1e6)}
    save_file(base, "base.safetensors")
    words = ("--base", "base.safetensors", "--out", "out.safetensors", "--dtype", "float16")
    result = cli("merge", "adapter.safetensors", *words)
    assert result.code == 1
    assert "model.norm.weight: not finite as float16" in result.message
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("shards", [False, True])
def test_the_recipes_base_from_a_disk_is_merged_like_the_shipped_one(shards: bool, adapter: Path, cli: Cli) -> None:
    base = save_shards(Path("big"), thirds(load_file(GLYPHS)), {}) if shards else GLYPHS
    out = "merged" if shards else "merged.safetensors"
    assert cli("merge", adapter, "--out", "shipped.safetensors").code == 0
    done = cli("merge", adapter, "--base", base, "--out", out, "--json").json()
    assert done["compared"] == "of outputs"
    assert done["max_abs_error"] < 1e-4
    assert raw(Path(out)) == raw(Path("shipped.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["new", "{select: [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}"])
def test_a_new_head_is_merged_into_the_file_too(head: str, cli: Cli) -> None:
    assert cli("train", *QUICK, f"model.head={head}", "--out", "run").code == 0
    assert cli("merge", "run", "--out", "shipped.safetensors").code == 0
    done = cli("merge", "run", "--base", GLYPHS, "--out", "merged.safetensors", "--json").json()
    assert done["verified"] is True
    assert raw(Path("merged.safetensors")) == raw(Path("shipped.safetensors"))
    words = ("--unmerge", "--base", "merged.safetensors", "--out", "back.safetensors")
    assert cli("merge", "run", *words).code == 0
    assert load_file("back.safetensors")["head.weight"].shape == load_file("merged.safetensors")["head.weight"].shape


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "out", ["base.safetensors", "./base.safetensors", "link.safetensors", "hard.safetensors", "big"]
)
def test_the_base_itself_is_replaced_only_by_force(out: str, force: bool, cli: Cli) -> None:
    prepare()
    Path("link.safetensors").symlink_to("base.safetensors")
    os.link("base.safetensors", "hard.safetensors")
    assert cli("merge", "adapter.safetensors", "--base", "base.safetensors", "--out", "right.safetensors").code == 0
    base = "big" if out == "big" else "base.safetensors"
    before = contents(Path())
    result = cli("merge", "adapter.safetensors", "--base", base, "--out", out, *["--force"][: int(force)])
    if not force:
        assert result.code == 2
        assert f"{Path(out)}: the output is the base itself" in result.message
        assert contents(Path()) == before
        return
    assert result.code == 0
    assert raw(Path(out)) == raw(Path("right.safetensors"))
    if "base" not in out and out != "big":  # another name for it: the base keeps its bytes
        assert Path("base.safetensors").read_bytes() == before["base.safetensors"]
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_force_replaces_no_folder_with_anything_else_in_it(cli: Cli) -> None:
    prepare()
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years")
    before = contents(Path())
    result = cli("merge", "adapter.safetensors", "--base", "big", "--out", "mine", "--force")
    assert result.code == 2
    assert "mine: also holds thesis.tex" in result.message
    assert contents(Path()) == before


@pytest.mark.parametrize(
    ("base", "out", "says"),
    [
        ("base.safetensors", "taken", "taken: is a folder, but the base is a single file"),
        ("big", "out.safetensors", "out.safetensors: is a file, but the base is in shards"),
        ("base.safetensors", "nowhere/out.safetensors", "nowhere: no such folder"),
        ("big/model-00001-of-00003.safetensors", "out.safetensors", "is missing"),
        ("none.safetensors", "out.safetensors", "none.safetensors: no such file"),
        ("cut.safetensors", "out.safetensors", "cut.safetensors: not a valid safetensors file"),
    ],
)
def test_mismatches_are_refused_and_nothing_is_written(base: str, out: str, says: str, cli: Cli) -> None:
    prepare()
    Path("taken").mkdir()
    Path("cut.safetensors").write_bytes(Path("base.safetensors").read_bytes()[:-7])
    before = contents(Path())
    if says == "is missing":
        base = "big"
        Path("big/model-00002-of-00003.safetensors").unlink()
        before.pop("big/model-00002-of-00003.safetensors")
        out = "merged"
    result = cli("merge", "adapter.safetensors", "--base", base, "--out", out, "--force")
    assert result.code == 2
    assert says in result.message
    assert contents(Path()) == before


Alter = Callable[[dict[str, Tensor]], object]
SECOND = "blocks.1.attn.qkv.weight"
OTHERS: dict[str, tuple[Alter, str]] = {
    "missing": (lambda base: base.pop(SECOND), f"{SECOND} is missing in the file and [192, 64] in the model"),
    "another shape": (
        lambda base: base.update({SECOND: torch.zeros(192, 32)}),
        f"{SECOND} is [192, 32] in the file and [192, 64] in the model",
    ),
    "one more": (lambda base: base.update(more=torch.zeros(2)), "more is [2] in the file and missing in the model"),
    "other bytes": (
        lambda base: base[SECOND][130].add_(1),
        "the first weight that differs is blocks.1.attn.qkv[128:192]",
    ),
    "another dtype": (
        lambda base: base.update({name: tensor.bfloat16() for name, tensor in base.items()}),
        "the base is stored as bfloat16, but the adapter was trained on float32",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_base_is_refused_with_the_first_tensor_that_differs(kind: str, adapter: Path, cli: Cli) -> None:
    alter, says = OTHERS[kind]
    base = load_file(GLYPHS)
    alter(base)
    save_file(base, "other.safetensors")
    result = cli("merge", adapter, "--base", "other.safetensors", "--out", "out.safetensors")
    assert result.code == 3
    assert says in result.message
    assert os.listdir() == ["other.safetensors"]


@pytest.mark.parametrize("kind", ["other names", "fewer", "another shape", "other bytes"])
def test_another_checkpoint_is_refused_without_a_model_too(kind: str, cli: Cli) -> None:
    prepare()
    base = load_file("base.safetensors")
    name = "model.layers.3.self_attn.v_proj.weight"
    if kind == "other names":
        base = {f"x{index}.weight": tensor for index, tensor in enumerate(base.values())}
    elif kind == "fewer":
        del base[name]
    elif kind == "another shape":
        base[name] = torch.zeros(8, 16)
    else:
        base[name][0, 0] += 1
    save_file(base, "other.safetensors")
    before = contents(Path())
    words = ("merge", "adapter.safetensors", "--base", "other.safetensors", "--out", "out.safetensors")
    result = cli(*words)
    assert result.code == 3
    says = {
        "other names": "target 'q' matches no weight",
        "other bytes": "not the base that the adapter was trained on",
    }
    assert says.get(kind, "not the ones it was trained on") in result.message
    assert contents(Path()) == before
    if kind == "other bytes":
        assert cli(*words, "--allow-base-mismatch").code == 0


def test_a_quantised_weight_cannot_be_updated(cli: Cli) -> None:
    prepare()
    base = load_file("base.safetensors")
    save_file(base | {name: base[name].to(torch.int8) for name in WEIGHTS}, "int8.safetensors")
    result = cli("merge", "adapter.safetensors", "--base", "int8.safetensors", "--out", "out.safetensors")
    assert result.code == 2
    assert "stored as torch.int8, to which ΔW cannot be added" in result.message
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("wrong", ["a target", "a bystander"])
def test_verification_finds_what_was_written_wrongly(wrong: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    plain = Draft.__exit__
    name = "model.layers.5.self_attn.k_proj.weight" if wrong == "a target" else "model.layers.5.mlp.up_proj.weight"

    def spoil(draft: Draft, *about: Any) -> None:
        draft.write(name, torch.full((1, 16), 9.0), 3)
        plain(draft, *about)

    monkeypatch.setattr(Draft, "__exit__", spoil)
    words = ("merge", "adapter.safetensors", "--base", "base.safetensors", "--out", "out.safetensors")
    result = cli(*words)
    assert result.code == 3
    assert name in result.message
    assert not Path("out.safetensors").exists()
    assert cli(*words, "--no-verify").code == 0
