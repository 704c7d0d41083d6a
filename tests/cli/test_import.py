"""Files of other programs become adapters: what is in them exactly, or nothing with a reason."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import reader
from tests.conftest import Cli, contents
from tests.makers import deltas_of, relative, write_adapter

BLOCK = "lycoris_blocks_0_attn_proj"
Q = "[0:64]"


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora(key: str = BLOCK, rows: int = 64, rank: int = 2, alpha: float = 3.0) -> dict[str, Tensor]:
    return {
        f"{key}.lora_up.weight": noise(rows, rank),
        f"{key}.lora_down.weight": noise(rank, 64),
        f"{key}.alpha": torch.tensor(alpha),
    }


def write(tensors: dict[str, Tensor], name: str = "file.safetensors", **metadata: str) -> Path:
    save_file(tensors, name, metadata)
    return Path(name)


IMPORT = ("--base", "glyphs_vit", "--out", "adapter.safetensors")


def test_an_imported_adapter_is_used_as_any_other(cli: Cli) -> None:
    file = write(lora())
    done = cli("import", file, *IMPORT, "--json").json()
    assert (done["method"], done["params"], done["error"], done["left_out"]) == ("lora", 2 * (64 + 64), 0, {})
    wanted = noise(64, 2) @ noise(2, 64) * 1.5
    assert relative(deltas_of("adapter.safetensors"), {"blocks.0.attn.proj": wanted}) < 1e-6
    assert cli("eval", "adapter.safetensors", "--json").json()["n"] > 0
    assert cli("export", "adapter.safetensors", "--to", "lycoris", "--out", "back.safetensors").code == 0
    back = load_file("back.safetensors")
    found = back[f"{BLOCK}.lora_up.weight"] @ back[f"{BLOCK}.lora_down.weight"]
    assert relative({BLOCK: found}, {BLOCK: wanted}) < 1e-6
    assert back[f"{BLOCK}.alpha"] == 2  # the rank: the scale is in the factors
    assert "made from" in cli("inspect", "adapter.safetensors").out


def test_half_precision_and_alpha_of_another_rank_are_read(cli: Cli) -> None:
    file = write({name: tensor.half() for name, tensor in lora(alpha=0.5).items()})
    assert cli("import", file, *IMPORT).code == 0
    wanted = noise(64, 2).half().float() @ noise(2, 64).half().float() / 4
    assert relative(deltas_of("adapter.safetensors"), {"blocks.0.attn.proj": wanted}) < 1e-6


@pytest.mark.parametrize(
    ("parts", "method"),
    [
        ({"hada_w1_a": (64, 2), "hada_w1_b": (2, 64), "hada_w2_a": (64, 3), "hada_w2_b": (3, 64)}, "loha"),
        ({"lokr_w1": (8, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)}, "lokr"),
        ({"lokr_w1": (8, 8), "lokr_w2": (8, 8)}, "krona"),
        ({"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), "lokr_w2_a": (16, 1), "lokr_w2_b": (1, 16)}, "lokr"),
        ({"lokr_w1": (2, 4), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 16)}, "lora"),  # of rank 4 · 2
        ({"lokr_w1": (4, 8), "lokr_w2": (16, 8)}, "dense"),
        ({"diff": (64, 64)}, "dense"),
    ],
)
def test_every_form_becomes_the_method_that_it_is(parts: dict[str, Any], method: str, cli: Cli) -> None:
    from superlora_cli.formats.lycoris import form_of

    tensors = {name: noise(*shape) for name, shape in parts.items()} | {"alpha": torch.tensor(5.0)}
    done = cli("import", write({f"{BLOCK}.{n}": t for n, t in tensors.items()}), *IMPORT, "--json").json()
    assert done["method"] == method
    wanted = {"blocks.0.attn.proj": reader.delta(tensors, (64, 64))}
    assert relative(deltas_of("adapter.safetensors"), wanted) < 1e-6
    assert relative({"": form_of(tensors, (64, 64)).dense()}, {"": wanted["blocks.0.attn.proj"]}) < 1e-6


def test_several_forms_in_a_file_are_one_adapter(cli: Cli) -> None:
    other = "lycoris_blocks_1_attn_proj"
    file = write({**lora(), f"{other}.diff": noise(64, 64)})
    assert cli("import", file, *IMPORT, "--json").json()["method"] == "dense"
    found = deltas_of("adapter.safetensors")
    assert relative(found, {"blocks.0.attn.proj": noise(64, 2) @ noise(2, 64) * 1.5,
                            "blocks.1.attn.proj": noise(64, 64)}) < 1e-6  # fmt: skip


def test_with_knobs_an_adapter_is_fitted(cli: Cli) -> None:
    file = write({f"{BLOCK}.diff": noise(64, 64)})
    words = ("--method", "lora", "--rank", "8", "--steps", "0")
    done = cli("import", file, *IMPORT, *words, "--json").json()
    assert done["params"] == 8 * 128
    assert done["error"] == pytest.approx(
        relative(deltas_of("adapter.safetensors"), {"blocks.0.attn.proj": noise(64, 64)}), rel=1e-4
    )
    assert (
        "--rank: rank 65 is larger"
        in cli("import", file, *IMPORT, "--force", "--method", "lora", "--rank", "65").message
    )


def test_a_recipe_names_the_base_too(cli: Cli) -> None:
    assert cli("import", write(lora()), "--base", "digits_lora", "--out", "adapter.safetensors").code == 0
    assert deltas_of("adapter.safetensors").keys() == {"blocks.0.attn.proj"}


def test_keys_without_a_place_are_named_and_left_out_only_if_asked(cli: Cli) -> None:
    strange = {
        "lora_te_text_model_q_proj": "no such weight",
        "lycoris_blocks_1_attn_proj": "its factors do not make a weight of shape [64, 64]",
        "lycoris_blocks_2_attn_proj": "more than its factors (dora_scale)",
        "lycoris_blocks_3_attn_proj": "an update of another kind (oft_blocks)",
        "emphasis": "no name of an adapter's tensor",
    }
    tensors = {
        **lora(), **lora("lora_te_text_model_q_proj"), **lora("lycoris_blocks_1_attn_proj", rows=32),
        **lora("lycoris_blocks_2_attn_proj"), "lycoris_blocks_2_attn_proj.dora_scale": noise(64, 1),
        "lycoris_blocks_3_attn_proj.oft_blocks": noise(2, 4), "emphasis": noise(1),
    }  # fmt: skip
    file = write(tensors)
    before = contents(Path())
    refused = cli("import", file, *IMPORT)
    assert refused.code == 2
    assert "5 keys have no place in glyphs_vit" in refused.message
    assert all(f"{key} (" in refused.message and why in refused.message for key, why in strange.items())
    assert "--partial leaves them out" in refused.message
    assert contents(Path()) == before
    done = cli("import", file, *IMPORT, "--partial", "--json").json()
    assert done["left_out"].keys() == strange.keys()
    assert deltas_of("adapter.safetensors").keys() == {"blocks.0.attn.proj"}
    nothing = write({name: t for name, t in tensors.items() if not name.startswith(BLOCK)}, "nothing.safetensors")
    assert cli("import", nothing, *IMPORT, "--partial", "--force").code == 2


def test_what_is_no_adapter_of_another_program_is_refused(cli: Cli, adapter: Path) -> None:
    Path("pickle.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    torch.save(lora(), "zip.ckpt")
    Path("cut.safetensors").write_bytes(write(lora()).read_bytes()[:-8])
    Path("folder").mkdir()
    Path("peft").mkdir()
    Path("peft/adapter_config.json").write_text("{}")
    write(lora(), "said.safetensors", lora_adapter_metadata="{")
    write(lora(), "odd.safetensors", lora_adapter_metadata='{"r": "two"}')
    write(lora(alpha=float("nan")), "nan.safetensors")
    write({f"{BLOCK}.diff": noise(32, 128)}, "turned.safetensors")
    Path("taken").write_text("mine")
    write(lora(), "good.safetensors")
    for words, said in (
        (("pickle.pt",), "is a PyTorch file"),
        (("zip.ckpt",), "is a PyTorch file"),
        (("cut.safetensors",), "not a valid safetensors file"),
        (("folder",), "is a folder"),
        (("peft",), "no such file"),
        (("missing.safetensors",), "no such file"),
        (("said.safetensors",), "damaged metadata"),
        (("odd.safetensors",), "damaged settings"),
        (("nan.safetensors",), "holds NaN or Inf"),
        (("turned.safetensors",), "do not make a weight of shape [64, 64]"),
        ((adapter,), "is a superlora adapter already"),
        (("good.safetensors", "--base", "glyphs_vitt"), "did you mean"),
        (("good.safetensors", "--base", "nowhere.yaml"), "no such file or shipped recipe"),
        (("good.safetensors", "--out", "taken"), "the file exists"),
        (("good.safetensors", "--method", "none"), "cannot be fitted"),
    ):
        before = contents(Path())
        result = cli("import", *IMPORT, *words)
        assert (result.code, said in result.message) == (2, True), (words, result.err)
        assert contents(Path()) == before


CAPTION = "data.caption=a drawing in the style of sks, {text}"


@pytest.fixture
def drawn(cli: Cli) -> Path:
    """A LoRA on the shipped pipeline, with a trigger word, in the current folder."""
    Path("r.yaml").write_text(
        "task: text-to-image\nmodel: {name: glyphs_text}\ndata: {name: digits, image_size: 16}\n"
        "adapter: {method: lora, rank: 2, targets: [q, v], alpha: 3, scaling: alpha}\n"
        "train: {steps: 1, optimizer: {lr: 0.001}}\n"
    )
    return write_adapter("lora.safetensors", "r.yaml", CAPTION)


def test_tools_are_told_name_base_and_trigger_words(drawn: Path, cli: Cli) -> None:
    done = cli("export", drawn, "--to", "comfyui", "--out", "sks.safetensors", "--json")
    assert f"writing {done.json()['bytes']:,} bytes to sks.safetensors" in done.err
    assert {row["form"] for row in done.json()["weights"]} == {"lora"}
    with safe_open("sks.safetensors", "pt") as file:
        said, names = file.metadata(), list(file.keys())
    assert all(name.startswith("lora_unet_") for name in names)
    assert said["ss_output_name"] == said["modelspec.title"] == "sks"
    assert said["ss_base_model_version"] == "sd_v1"
    assert said["ss_network_module"] == "networks.lora"
    assert said["ss_network_dim"] == "2"
    assert said["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert said["modelspec.trigger_phrase"] == "a drawing in the style of sks"


def test_a_limit_makes_it_lora_with_the_error_of_every_weight(cli: Cli, drawn: Path) -> None:
    file = write_adapter("loha.safetensors", "r.yaml", "adapter.method=loha")
    plain = cli("export", file, "--to", "kohya", "--out", "own.safetensors", "--json").json()
    assert ({row["form"] for row in plain["weights"]}, plain["error"]) == ({"loha"}, 0)
    shown = cli("export", file, "--to", "kohya", "--out", "lora2.safetensors", "--rank", "2")
    assert "as LoRA" in shown.out
    assert "without a limit it is exact" in shown.err
    done = cli("export", file, "--to", "kohya", "--out", "lora1.safetensors", "--rank", "1", "--json").json()
    assert {(row["form"], row["rank"]) for row in done["weights"]} == {("lora", 1)}
    assert cli("import", "lora1.safetensors", "--base", "glyphs_text", "--out", "back.safetensors").code == 0
    assert relative(deltas_of("back.safetensors"), deltas_of(file)) == pytest.approx(done["error"], rel=1e-4)


def test_kohyas_keys_are_those_of_pipelines(cli: Cli) -> None:
    file = write_adapter("vit.safetensors", "digits_lora")
    result = cli("export", file, "--to", "kohya", "--out", "out.safetensors")
    assert result.code == 2
    assert "glyphs_vit is not a text-to-image pipeline (--to lycoris" in result.message
    assert cli("export", file, "--to", "lycoris", "--out", "out.safetensors").code == 0
    assert cli("import", "out.safetensors", *IMPORT).code == 0
    back = deltas_of("adapter.safetensors")
    assert not back["blocks.0.attn.qkv"][64:128].any()  # k
    whole = {f"{name}{rows}": delta for name, tensor in back.items()
             for rows, delta in ((Q, tensor[:64]), ("[128:192]", tensor[128:]))}  # fmt: skip
    assert relative(whole, deltas_of(file)) < 1e-6


def test_the_same_file_becomes_the_same_adapter(cli: Cli, drawn: Path) -> None:
    """safetensors gives tensors in an order of its own."""
    from superlora_cli.formats.foreign import read_foreign

    cli("export", drawn, "--to", "kohya", "--out", "lora")
    parts = read_foreign(Path("lora")).parts
    assert list(parts) == sorted(parts)
    refused = cli("import", "lora", *IMPORT)
    keys = re.findall(r"lora_unet_\w+", refused.message)
    assert keys == sorted(keys)


TEXT = "adapter.targets=[q, 'text_encoder.*.q_proj', 'text_encoder.*.fc1']"


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [(), ("adapter.method=loha",)])
def test_text_encoders_leave_and_come_back(knobs: tuple[str, ...], cli: Cli, drawn: Path) -> None:
    file = write_adapter("text.safetensors", "r.yaml", TEXT, *knobs)
    done = cli("export", file, "--to", "kohya", "--out", "kohya.safetensors", "--json").json()
    assert done["error"] == 0
    assert "load_lora_weights" not in done["load"]  # without `out_proj`
    parts = {name.partition(".")[0] for name in load_file("kohya.safetensors")}
    text = {name for name in parts if name.startswith("lora_te_text_model_encoder_layers_0_self_attn_q_proj")}
    assert (len(text), {name[:8] for name in parts}) == (1, {"lora_une", "lora_te_"})
    words = ("--base", "glyphs_text", "--out", "back.safetensors", "--force")
    assert cli("import", "kohya.safetensors", *words).code == 0
    assert relative(deltas_of("back.safetensors"), deltas_of(file)) < 1e-6
    if not knobs:
        assert cli("export", file, "--to", "diffusers-lora", "--out", "diffusers.safetensors").code == 0
        assert cli("import", "diffusers.safetensors", *words).code == 0
        assert relative(deltas_of("back.safetensors"), deltas_of(file)) < 1e-6
    assert cli("export", file, "--to", "delta", "--out", "delta.safetensors").code == 0
    assert load_file("delta.safetensors").keys() == {f"{name}.weight" for name in deltas_of(file)}
    for to in ("lycoris", "peft-lora"):
        refused = cli("export", file, "--to", to, "--out", "new")
        assert (refused.code, "text_encoder is adapted as well" in refused.message) == (2, True)


def test_kohyas_text_encoders_are_read_with_their_alpha(cli: Cli) -> None:
    """By the names of transformers before version 5, and after."""
    wanted = noise(64, 2) @ noise(2, 64) * 1.5
    for inner in ("text_model_", ""):
        key = f"lora_te_{inner}encoder_layers_0_self_attn_q_proj"
        assert cli("import", write(lora(key)), "--base", "glyphs_text", "--out", f"{inner}a").code == 0
        (found,) = deltas_of(f"{inner}a").values()
        assert relative({"": found}, {"": wanted}) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("to", ["kohya", "peft-lora", "diffusers-lora"])
def test_a_sum_is_written_in_these_formats_too(to: str, cli: Cli, drawn: Path) -> None:
    other = write_adapter("other.safetensors", "r.yaml", "adapter.rank=3", seed=1)
    done = cli("combine", drawn, other, "--weights", "0.5,2", "--to", to, "--out", "sum", "--json")
    assert done.json()["error"] == 0
    assert "bytes to sum" in done.err
    assert cli("import", "sum", "--base", "glyphs_text", "--out", "back.safetensors").code == 0
    one, two = deltas_of(drawn), deltas_of(other)
    assert relative(deltas_of("back.safetensors"), {name: 0.5 * one[name] + 2 * two[name] for name in one}) < 1e-6
    assert "unknown form 'timm'" in cli("combine", drawn, other, "--to", "timm", "--out", "new").message


@pytest.mark.slow
def test_images_tell_what_an_approximation_costs(cli: Cli, drawn: Path) -> None:
    file = write_adapter("loha.safetensors", "r.yaml", "adapter.method=loha", CAPTION, scale=1.0)
    words = ("export", file, "--to", "kohya", "--images", "1", "--force", "--out")
    told = cli(*words, "out", "--json").json()["images"]
    assert (told["num"], told["prompt"]) == (1, "a drawing in the style of sks")
    assert told["difference"] < 1e-3
    shown = cli(*words, "out", "--rank", "1", "--prompt", "a red seven").out
    difference = re.search(r"1 images .*differ by ([\d.]+)% of the range", shown)
    assert difference, shown
    assert float(difference[1]) > 0.1
    for more, said in ((("--images", "0"), "0 images"), (("--to", "delta"), "delta is exact")):
        assert said in cli(*words, "new", *more).message
        assert not Path("new").exists()
