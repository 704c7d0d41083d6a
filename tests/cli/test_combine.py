"""Sums of adapters are sums of their updates, whatever the variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from superlora_cli.adapter import store
from tests.conftest import Cli, contents
from tests.makers import BASE, deltas_of, relative, write_adapter, write_overflowing

VARIANTS = {"lora.safetensors": "digits_lora", "lokr.safetensors": "digits_lokr", "lorta.safetensors": "quickstart"}


@pytest.fixture
def three(cli: Cli) -> list[Path]:
    """Adapters of three variants on q and v of one base, in the current folder."""
    return [write_adapter(name, recipe, seed=i) for i, (name, recipe) in enumerate(VARIANTS.items())]


def mean(weights: list[float], paths: list[Path]) -> dict[str, Tensor]:
    deltas = [deltas_of(path) for path in paths]
    return {name: sum(w * d[name] for w, d in zip(weights, deltas, strict=True)) for name in deltas[0]}  # type: ignore[misc]


@pytest.mark.parametrize(("weights", "index"), [("1", 1), ("1,0", 0), ("0,1.0", 1)])
def test_weight_one_of_one_adapter_is_that_adapter(weights: str, index: int, three: list[Path], cli: Cli) -> None:
    paths = three[:2] if "," in weights else [three[index]]
    done = cli("combine", *paths, "--weights", weights, "--out", "out.safetensors", "--json").json()
    assert done["error"] == 0
    assert Path("out.safetensors").read_bytes() == three[index].read_bytes()


def test_a_delta_of_a_sum_is_the_sum_of_deltas(three: list[Path], cli: Cli) -> None:
    words = ("--weights", "0.5,0.5,-2", "--to", "delta", "--out", "sum.safetensors")
    assert cli("combine", *three, *words).code == 0
    found, wanted = load_file("sum.safetensors"), mean([0.5, 0.5, -2.0], three)
    for block in range(6):
        q, k, v = found[f"blocks.{block}.attn.qkv.weight"].split(64)
        assert not k.any()
        torch.testing.assert_close(q, wanted[f"blocks.{block}.attn.qkv[0:64]"])
        torch.testing.assert_close(v, wanted[f"blocks.{block}.attn.qkv[128:192]"])


def test_the_mean_of_two_variants_has_the_error_that_is_told(three: list[Path], cli: Cli) -> None:
    done = cli("combine", *three[:2], "--out", "mean.safetensors", "--json").json()
    wanted = mean([0.5, 0.5], three[:2])
    found = deltas_of("mean.safetensors")
    assert 0 < done["error"] < 0.101
    assert relative(found, wanted) == pytest.approx(done["error"], rel=1e-3)
    whole = cli("combine", *three[:2], "--energy", "1", "--out", "whole.safetensors", "--json").json()
    assert whole["error"] < 1e-5
    assert relative(deltas_of("whole.safetensors"), wanted) < 1e-5


def test_ranks_that_an_adapter_cannot_have_are_told(cli: Cli) -> None:
    targets = "adapter.targets=[q, patch_embed.proj]"
    paths = [write_adapter(f"{seed}.safetensors", "digits_lorta3d", targets, seed=seed) for seed in (0, 1)]
    words = ("combine", *paths, "--energy", "1", "--out")
    done = cli(*words, "sum.safetensors", "--json").json()
    (note,) = done["notes"]
    assert "limited to 48, a side of patch_embed.proj: --to delta keeps all" in note
    assert max(row["rank"] for row in done["weights"]) == 48
    warned = cli(*words, "shown.safetensors").err
    assert "--to delta is exact" in warned
    assert "--energy" not in warned


def test_loras_add_up_exactly_with_their_ranks(cli: Cli) -> None:
    paths = [write_adapter(f"{r}.safetensors", "digits_lora", f"adapter.rank={r}", seed=r) for r in (2, 3)]
    done = cli("combine", *paths, "--weights", "0.3,0.7", "--out", "sum.safetensors", "--json").json()
    assert done["error"] == 0
    assert {row["rank"] for row in done["weights"]} == {5}
    assert relative(deltas_of("sum.safetensors"), mean([0.3, 0.7], paths)) < 1e-6


def test_the_sum_is_an_adapter_like_any_other(three: list[Path], cli: Cli) -> None:
    assert cli("combine", *three, "--out", "sum.safetensors", "--energy", "1").code == 0
    assert cli("combine", *three, "--out", "delta.safetensors", "--to", "delta").code == 0
    assert cli("eval", "sum.safetensors", "--json").json()["n"] == 500
    assert cli("merge", "sum.safetensors", "--out", "merged.safetensors", "--json").json()["verified"] is True
    base, merged, delta = load_file(BASE), load_file("merged.safetensors"), load_file("delta.safetensors")
    for name in delta:
        torch.testing.assert_close(merged[name], base[name] + delta[name], atol=1e-6, rtol=1e-5)
    about = cli("inspect", "sum.safetensors", "--json").json()
    assert about["config"]["groups"] == "weight"
    assert [source["weight"] for source in about["origin"]["combined"]] == [1 / 3] * 3


def test_targets_may_differ_and_overlap(cli: Cli) -> None:
    paths = [
        write_adapter("q.safetensors", "digits_lora", "adapter.targets=[q]", "adapter.rank=2"),
        write_adapter(
            "whole.safetensors", "digits_lora", 'adapter.targets=["blocks.[01].attn.qkv",o]', "adapter.rank=3"
        ),
    ]
    done = cli("combine", *paths, "--weights", "1,2", "--out", "sum.safetensors", "--json").json()
    assert done["error"] == 0
    q, whole, found = (deltas_of(path) for path in (*paths, "sum.safetensors"))
    wanted = {name: 2 * delta for name, delta in whole.items()}
    for block in range(2):
        wanted[f"blocks.{block}.attn.qkv"][:64] += q[f"blocks.{block}.attn.qkv[0:64]"]
    wanted |= {f"blocks.{block}.attn.qkv[0:64]": q[f"blocks.{block}.attn.qkv[0:64]"] for block in range(2, 6)}
    assert relative(found, wanted) < 1e-6
    assert cli("eval", "sum.safetensors").code == 0


@pytest.mark.parametrize(
    ("words", "numbers", "halved"),
    [
        (["blocks.[01].*=0.5"], [1], lambda name: 0.5 if name[7] in "01" else 1),
        (
            ["0.5,2,q=-1,blocks.3.attn.qkv=0"],
            [0.5, 2],
            lambda name: 0 if name[7] == "3" else -1 if "[0:" in name else 1,
        ),
    ],
)
def test_some_weights_may_have_another_strength(
    words: list[str], numbers: list[float], halved: Callable[[str], float], three: list[Path], cli: Cli
) -> None:
    paths = three[: len(numbers)]
    done = cli("combine", *paths, "--weights", *words, "--energy", "1", "--out", "sum.safetensors", "--json").json()
    assert done["error"] < 1e-5
    wanted = {name: halved(name) * delta for name, delta in mean(numbers, paths).items()}
    assert relative(deltas_of("sum.safetensors"), wanted) < 1e-5
    parts = cli("inspect", "sum.safetensors", "--json").json()["origin"]["parts"]
    assert parts == {
        name: float(number) for name, _, number in (w.rpartition("=") for w in words[0].split(",")) if name
    }


TEXT = "text_encoder.*.q_proj"


@pytest.fixture
def pipeline(cli: Cli) -> None:
    """A recipe for the shipped pipeline, `r.yaml`."""
    Path("r.yaml").write_text(
        "task: text-to-image\nmodel: {name: glyphs_text}\ndata: {name: digits, image_size: 16}\n"
        "adapter: {method: lora, rank: 2, targets: [q]}\ntrain: {steps: 1}\n"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("first", [0, 1])
def test_a_text_encoder_may_be_adapted_by_some_only(first: int, cli: Cli) -> None:
    targets = ("[q]", f"[v, '{TEXT}']")
    paths = [write_adapter(f"{i}.safetensors", "r.yaml", f"adapter.targets={targets[i]}") for i in (first, 1 - first)]
    done = cli("combine", *paths, "--weights", "0.7,0.4", "--out", "sum.safetensors", "--json")
    assert done.code == 0, done.err
    one, two = (deltas_of(path) for path in paths)
    wanted = {name: 0.7 * delta for name, delta in one.items()} | {name: 0.4 * delta for name, delta in two.items()}
    assert relative(deltas_of("sum.safetensors"), wanted) < 1e-6
    for to in ("lycoris", "peft-lora"):
        refused = cli("combine", *paths, "--to", to, "--out", "new")
        assert (refused.code, "text_encoder is adapted as well" in refused.message) == (2, True)
        assert not Path("new").exists()


@pytest.mark.slow
def test_heads_are_averaged(cli: Cli) -> None:
    words = ("digits_lora", "model.head=new")
    paths = [write_adapter(f"{seed}.safetensors", *words, f"seed={seed}", seed=seed) for seed in (1, 2)]
    told = cli("combine", *paths, "--weights", "1,3", "--out", "sum.safetensors")
    assert (told.code, "the weighted mean of heads" in told.out) == (0, True)
    one, two, found = (store.load(Path(path)).head["head.weight"] for path in (*paths, "sum.safetensors"))
    torch.testing.assert_close(found, 0.25 * one + 0.75 * two)
    frozen = write_adapter("frozen.safetensors", "digits_lora")
    refused = cli("combine", paths[0], frozen, "--out", "new.safetensors")
    assert refused.code == 2
    assert "head" in refused.message
    assert cli("combine", *paths, "--weights", "1,-1", "--out", "new.safetensors").code == 2
    for words, head in (("--weights", "0,1"), "kept"), (("--to", "delta"), "left out"):
        assert cli("combine", *paths, *words, "--out", f"{head}.safetensors", "--json").json()["head"] == head


@pytest.mark.parametrize("targets", ["[q,v]", "[q]"])
def test_adapters_of_different_bases_are_refused(targets: str, three: list[Path], cli: Cli) -> None:
    base = load_file(BASE)
    save_file({name: tensor * 1.01 for name, tensor in base.items()}, "other.safetensors")
    words = ("model.checkpoint=other.safetensors", f"adapter.targets={targets}")
    other = write_adapter("b.safetensors", "digits_lora", *words)
    result = cli("combine", three[0], other, "--out", "new.safetensors")
    assert result.code == 3
    assert "b.safetensors" in result.message
    assert not Path("new.safetensors").exists()


REFUSED = [
    (["--weights", "1"], "1 weights for 2 adapters"),
    (["--weights", "1,x"], "'x' is not a number"),
    (["--weights", "nan,1"], "not finite"),
    (["--weights", "q=inf"], "not finite"),
    (["--weights", "q=x"], "'x' is not a number"),
    (["--weights", "qq=1"], "'qq' matches no weight"),
    (["--weights", "o=1"], "'o' matches no weight that is adapted"),
    (["--weights", "blocks.0.attn.qkv[0:10]=1"], "matches a part of blocks.0.attn.qkv[0:64] only"),
    (["--weights", "0,0"], "all weights are 0"),
    (["--rank", "0"], "rank is 0"),
    (["--energy", "2"], "energy is 2.0"),
    (["--to", "peft"], "unknown form 'peft'"),
    (["--to", "peft-ia3"], "unknown form 'peft-ia3'"),
    (["--to", "delta", "--rank", "2"], "is exact"),
    (["--out", "lora.safetensors"], "the file exists"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_combined_is_refused_and_nothing_written(
    words: list[str], message: str, three: list[Path], cli: Cli
) -> None:
    before = contents(Path())
    result = cli("combine", *three[:2], *([] if "--out" in words else ["--out", "new.safetensors"]), *words)
    assert result.code == 2
    assert message in result.message
    assert contents(Path()) == before


def test_an_update_that_is_not_finite_is_refused(three: list[Path], cli: Cli) -> None:
    file = write_overflowing("nan.safetensors", "digits_lora")
    result = cli("combine", three[0], file, "--out", "new.safetensors")
    assert result.code == 1
    assert "nan.safetensors" in result.message
