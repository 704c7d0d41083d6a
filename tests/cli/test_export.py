"""An adapter leaves for other libraries as what it is, and what cannot be is refused before anything is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from superlora_cli.errors import UsageError
from superlora_cli.formats.whole import check_plain
from tests import reader
from tests.conftest import Cli, contents
from tests.makers import BASE, deltas_of, relative, write_adapter, write_base, write_overflowing

PEFT = "base_model.model."


@pytest.fixture
def lora(cli: Cli) -> Path:
    """A LoRA of q and v in the current, otherwise empty folder."""
    return write_adapter("lora.safetensors", "digits_lora")


def test_the_delta_is_what_merging_adds(lora: Path, cli: Cli) -> None:
    done = cli("export", lora, "--to", "delta", "--out", "delta.safetensors", "--json").json()
    assert done["bytes"] == Path("delta.safetensors").stat().st_size
    assert cli("merge", lora, "--out", "merged.safetensors", "--no-verify").code == 0
    delta, base, merged = load_file("delta.safetensors"), load_file(BASE), load_file("merged.safetensors")
    assert delta.keys() == {f"blocks.{block}.attn.qkv.weight" for block in range(6)}
    for name, tensor in base.items():
        assert torch.equal(merged[name], tensor + delta[name] if name in delta else tensor)
    with safe_open("delta.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["superlora.delta_of"])["name"] == "glyphs_vit"
    assert json.loads(metadata["superlora.rows"])["blocks.0.attn.qkv.weight"] == [[0, 64], [128, 192]]


def test_timm_is_merging(lora: Path, cli: Cli) -> None:
    done = cli("export", lora, "--to", "timm", "--out", "exported.safetensors", "--json").json()
    assert cli("merge", lora, "--out", "merged.safetensors").code == 0
    assert Path("exported.safetensors").read_bytes() == Path("merged.safetensors").read_bytes()
    assert done["verified"] is True
    assert cli("export", lora, "--to", "timm", "--out", "again.safetensors").code == 0


@pytest.mark.parametrize(
    "knobs",
    [("adapter.method=loha",), ("adapter.method=unilora",), ("adapter.method=hira",),
     ("adapter.method=null", "adapter.groups=2", "adapter.projection=nonlinear_v2")],
    ids=lambda knobs: knobs[-1],
)  # fmt: skip
def test_a_scale_multiplies_the_update(knobs: tuple[str, ...], cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora", *knobs)
    for to in ("delta", "lycoris"):
        assert cli("export", file, "--to", to, "--scale", "-0.3", "--out", to).code == 0
    found, whole = load_file("delta"), deltas_of(file)
    wanted = {name: torch.zeros(192, 64) for name in found}
    for name, tensor in whole.items():
        start = 0 if "[0:" in name else 128
        wanted[f"{name.partition('[')[0]}.weight"][start : start + 64] = -0.3 * tensor
    assert relative(found, wanted) < 1e-6
    own = {name: reader.delta(parts, (192, 64)) for name, parts in by_module(load_file("lycoris")).items()}
    assert (
        relative(own, {f"lycoris_{n.removesuffix('.weight').replace('.', '_')}": d for n, d in wanted.items()}) < 1e-5
    )


def by_module(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A module's key → its tensors, by what follows the key."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, own = name.partition(".")
        found.setdefault(key, {})[own] = tensor
    return found


def test_merging_and_unmerging_have_a_scale_too(lora: Path, cli: Cli) -> None:
    words = ("merge", lora, "--scale", "0.5")
    assert cli(*words, "--out", "merged.safetensors", "--json").json()["verified"] is True
    base, merged, whole = load_file(BASE), load_file("merged.safetensors"), deltas_of(lora)
    q = merged["blocks.0.attn.qkv.weight"] - base["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(q[:64], 0.5 * whole["blocks.0.attn.qkv[0:64]"], atol=1e-6, rtol=1e-4)
    assert cli(*words, "--base", "merged.safetensors", "--unmerge", "--out", "restored.safetensors").code == 0
    assert all(
        torch.allclose(tensor, base[name], atol=1e-6) for name, tensor in load_file("restored.safetensors").items()
    )
    whole_merge = ("merge", lora, "--base", "merged.safetensors", "--unmerge", "--out", "new.safetensors")
    assert cli(*whole_merge).code == 3
    rotation = write_adapter(
        "oft.safetensors", "digits_lora", "adapter.method=oft", "adapter.rank=null", "adapter.targets=[o]"
    )
    for refused, said in (
        (cli("merge", lora, "--scale", "nan", "--out", "new.safetensors"), "nan is not finite"),
        (cli("export", rotation, "--to", "peft-oft", "--scale", "0.5", "--out", "new"), "a rotation times a number"),
    ):
        assert (refused.code, said in refused.message) == (2, True)


def peft_deltas(folder: str) -> dict[str, Tensor]:
    """Weight name → B A, as PEFT reads the folder (alpha is the rank)."""
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert config["alpha_pattern"] == config["rank_pattern"]
    tensors = load_file(Path(folder, "adapter_model.safetensors"))
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix(PEFT) + ".weight": tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        for name in names
    }


def test_lora_of_a_fused_weight_is_a_block_structured_lora(lora: Path, cli: Cli) -> None:
    done = cli("export", lora, "--to", "peft-lora", "--out", "peft", "--json").json()
    assert [row["rank"] for row in done["weights"]] == [8] * 6  # 4 of q and 4 of v
    b = load_file("peft/adapter_model.safetensors")[f"{PEFT}blocks.0.attn.qkv.lora_B.weight"]
    q, k, v = b.split(64)
    assert not k.any()
    assert not q[:, 4:].any()
    assert not v[:, :4].any()
    assert cli("export", lora, "--to", "delta", "--out", "delta.safetensors").code == 0
    assert relative(peft_deltas("peft"), load_file("delta.safetensors")) < 1e-6


def test_a_lora_with_a_large_error_warns_and_says_how_to_avoid_it(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "quickstart")
    for out, limits in (("small", ("--rank", "4")), ("near", ("--energy", "0.9975")), ("whole", ("--energy", "1"))):
        shown = cli("export", file, "--to", "peft-lora", *limits, "--out", out)
        assert f"{Path('a.safetensors').stat().st_size:,} bytes" in shown.out
        error = re.search(r"rank at most (\d+), relative error ([\d.]+)%", shown.out)
        assert error
        warned = "warning: the relative error of ΔW is" in shown.err
        assert warned == (out == "small") == (float(error[2]) > 5)
        assert not warned or "--energy 0.9975 keeps it below 5 %, --to timm or delta is exact" in shown.err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_export_the_update_in_float32(dtype: torch.dtype, cli: Cli) -> None:
    base = write_base("half.safetensors", dtype)
    file = write_adapter("a.safetensors", "quickstart", f"model.checkpoint={base}")
    assert cli("export", file, "--to", "peft-lora", "--energy", "1", "--out", "peft").code == 0
    assert cli("export", file, "--to", "delta", "--out", "delta.safetensors").code == 0
    delta = load_file("delta.safetensors")
    assert {tensor.dtype for tensor in delta.values()} == {torch.float32}
    assert relative(peft_deltas("peft"), delta) < 1e-5


def test_the_base_is_not_needed(cli: Cli) -> None:
    base = write_base("base.safetensors", torch.float32)
    file = write_adapter("a.safetensors", "quickstart", f"model.checkpoint={base}")
    base.unlink()
    for to in ("peft-lora", "delta"):
        assert cli("export", file, "--to", to, "--out", to).code == 0


def test_more_energy_misses_less(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "quickstart")
    errors = []
    for energy in (0.5, 0.9, 0.999):
        words = ("--to", "peft-lora", "--energy", energy, "--out", f"at {energy}", "--json")
        errors.append(cli("export", file, *map(str, words)).json()["error"])
        assert errors[-1] ** 2 < 1 - energy + 1e-6
    assert errors == sorted(errors, reverse=True)


def test_people_see_the_error_of_every_weight(lora: Path, cli: Cli) -> None:
    shown = cli("export", lora, "--to", "peft-lora", "--rank", "2", "--out", "peft").out
    assert "relative error" in shown
    assert "blocks.5.attn.qkv" in shown


def test_an_exact_file_is_one_line_and_no_table_of_zeros(lora: Path, cli: Cli) -> None:
    shown = cli("export", lora, "--to", "peft-lora", "--out", "peft").out
    assert "blocks.5.attn.qkv" not in shown
    assert re.search(r"^ΔW of all 6 weights is exact: relative error at most [0-9.e-]+$", shown, re.MULTILINE)


REFUSED = [
    (["--to", "onnx"], "unknown format 'onnx'"),
    (["--to", "peft"], "did you mean 'peft-lora'"),
    (["--to", "peft-lora", "--rank", "0"], "rank is 0"),
    (["--to", "peft-lora", "--energy", "2"], "energy is 2.0"),
    (["--to", "peft-lora", "--energy", "nan"], "energy is nan"),
    (["--to", "delta", "--rank", "2"], "--rank"),
    (["--to", "timm", "--energy", "0.5"], "--energy"),
    (["--to", "diffusers-lora"], "not a diffusers model"),
    (["--to", "peft-lora", "--out", "taken"], "the folder exists"),
    (["--to", "delta", "--out", "lora.safetensors"], "the file exists"),
    (["--to", "delta", "--out", "nowhere/x"], "no such folder"),
    (["--to", "peft-lora", "--out", "lora.safetensors", "--force"], "is a folder"),
    (["--to", "delta", "--out", "taken", "--force"], "is a file"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_exported_is_refused_and_nothing_written(
    words: list[str], message: str, lora: Path, cli: Cli
) -> None:
    Path("taken").mkdir()
    Path("taken/mine").write_text("mine")
    before = contents(Path())
    result = cli("export", lora, *([] if "--out" in words else ["--out", "new"]), *words)
    assert result.code == 2
    assert message in result.message
    assert contents(Path()) == before


def test_force_replaces_the_files_and_leaves_the_others(lora: Path, cli: Cli) -> None:
    for words in ([], ["--force", "--rank", "1"]):
        assert cli("export", lora, "--to", "peft-lora", "--out", "peft", *words).code == 0
        Path("peft/mine").write_text("mine")
    assert json.loads(Path("peft/adapter_config.json").read_text())["r"] == 2
    assert sorted(path.name for path in Path().rglob("*") if path.is_file()) == [
        "adapter_config.json", "adapter_model.safetensors", "lora.safetensors", "mine"]  # fmt: skip


@pytest.mark.parametrize("to", ["peft-lora", "delta", "timm"])
def test_an_update_that_is_not_finite_is_refused(to: str, cli: Cli) -> None:
    file = write_overflowing("a.safetensors", "digits_lora")
    result = cli("export", file, "--to", to, "--out", "new.safetensors")
    assert result.code == 1
    assert "not finite" in result.message
    assert not Path("new.safetensors").exists()


def test_what_is_no_adapter_is_refused(cli: Cli) -> None:
    save_file({"weight": torch.ones(2)}, "plain.safetensors")
    for name in ("plain.safetensors", "missing.safetensors"):
        assert cli("export", name, "--to", "peft-lora", "--out", "new").code == 2


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "layer", [Doubled(2, 2), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Embedding(2, 2)]
)
def test_a_layer_whose_lora_would_be_another_update_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match="no LoRA for it"):
        check_plain("layer", layer)
    check_plain("layer", nn.Conv2d(4, 4, 3, stride=2, padding=1))


def test_a_model_that_never_calls_its_layer_is_refused(cli: Cli) -> None:
    sizes = "{img_size: 16, patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2, num_classes: 10}"
    model = f"model={{name: beit_base_patch16_224, pretrained: false, head: frozen, kwargs: {sizes}}}"
    file = write_adapter("beit.safetensors", "digits_lora", model, "adapter.rank=2")
    result = cli("export", file, "--to", "peft-lora", "--out", "peft")
    assert result.code == 2
    assert "blocks.0.attn.qkv: the model reads its weight" in result.message
    assert not Path("peft").exists()
    other = write_adapter("proj.safetensors", "digits_lora", model, "adapter.rank=2", "adapter.targets=[o]")
    assert cli("export", other, "--to", "peft-lora", "--out", "peft").code == 0


def test_a_language_model_that_never_calls_its_layer_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def by_weights(layer: Any, x: Tensor) -> Tensor:
        gate, up, down = (part.weight for part in (layer.gate_proj, layer.up_proj, layer.down_proj))
        return (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def by_values(layer: Any, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else by_weights(layer, x)

    words = ("export", write_adapter("a.safetensors", "sums_roman_lora", "adapter.targets=[mlp]"), "--to", "peft-lora")
    assert "notes" not in cli(*words, "--out", "peft", "--json").json()
    monkeypatch.setattr(LlamaMLP, "forward", by_values)
    assert "could not be checked" in cli(*words, "--out", "unchecked").out
    monkeypatch.setattr(LlamaMLP, "forward", by_weights)
    result = cli(*words, "--out", "other")
    assert result.code == 2
    assert "mlp.gate_proj: the model reads its weight" in result.message
    assert not Path("other").exists()


def test_an_export_does_not_depend_on_anything_but_the_adapter(lora: Path, cli: Cli) -> None:
    for folder in ("one", "two"):
        assert cli("export", lora, "--to", "peft-lora", "--rank", "3", "--out", folder).code == 0
    assert contents(Path("one")) == contents(Path("two"))
    assert deltas_of(lora).keys() >= {"blocks.0.attn.qkv[0:64]", "blocks.0.attn.qkv[128:192]"}
