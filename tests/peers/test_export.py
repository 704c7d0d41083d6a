"""What is exported does in PEFT and in diffusers what it did here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from superlora_cli.adapter.attach import attach
from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.adapter.lowrank import approximate
from superlora_cli.adapter.updates import Dense
from superlora_cli.formats.diffusers_lora import diffusers_file
from superlora_cli.formats.whole import loras
from superlora_cli.models.cfg_unet import ConditionalUNet
from superlora_cli.models.embedded import ASSETS, EMBEDDED
from superlora_cli.models.targets import expand
from superlora_cli.opening.build import build_from_file
from tests.conftest import Cli
from tests.makers import BASE, relative, write_adapter, write_base


def vit(file: Path = BASE, **arguments: Any) -> nn.Module:
    base = EMBEDDED["glyphs_vit"]
    arguments = {"num_classes": base.classes, **base.arguments, **arguments}
    return timm.create_model(base.architecture, checkpoint_path=str(file), **arguments).eval()


def unet() -> nn.Module:
    model = ConditionalUNet(**EMBEDDED["glyphs_unet"].arguments)
    model.load_state_dict(load_file(ASSETS / EMBEDDED["glyphs_unet"].weights))
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(model: nn.Module, *inputs: Tensor) -> Tensor:
    result: Tensor = model.eval()(*inputs)
    return result.float()


def peft_delta(model: nn.Module) -> dict[str, Tensor]:
    """Module name → ΔW in PEFT."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    return {n.removeprefix("base_model.model."): m.get_delta_weight("default").detach() for n, m in layers.items()}  # type: ignore[operator]


def wanted_delta(file: Path, cli: Cli) -> dict[str, Tensor]:
    assert cli("export", file, "--to", "delta", "--out", "delta.safetensors", "--force").code == 0
    return {name.removesuffix(".weight"): tensor for name, tensor in load_file("delta.safetensors").items()}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter.alpha=2", "adapter.rank=3"],
        ["adapter.targets=[q,v,o,mlp]"],
        ["adapter.method=null", "adapter.groups=1", "adapter.fold=none"],
        ["adapter.method=lotr", "adapter.rank=3"],
    ],
)
def test_low_rank_updates_of_a_fused_qkv_are_exact_in_peft(overrides: list[str], cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora", *overrides)
    done = cli("export", file, "--to", "peft-lora", "--out", "lora", "--json").json()
    assert done["error"] == 0
    theirs = peft.PeftModel.from_pretrained(vit(), "lora")
    x = noise(8, 3, 16, 16)
    plain, own = outputs(vit(), x), outputs(build_from_file(file).model, x)
    assert (own - plain).abs().max() > 0.01
    assert (outputs(theirs, x) - own).abs().max() < 1e-5 * own.abs().max()
    found = peft_delta(theirs)
    assert relative(found, wanted_delta(file, cli)) < 1e-5
    assert not found["blocks.0.attn.qkv"][64:128].any()  # k


@pytest.mark.parametrize("own", [False, True])
def test_the_line_that_is_printed_loads_it(own: bool, cli: Cli) -> None:
    base = [f"model.checkpoint={write_base('base.safetensors', torch.float32)}"] if own else []
    file = write_adapter("a.safetensors", "digits_lora", *base)
    done = cli("export", file, "--to", "peft-lora", "--out", "lora", "--json").json()
    x = noise(2, 3, 16, 16)
    *before, last = done["load"].split("; ")
    space: dict[str, Any] = {"timm": timm, "peft": peft}
    exec("; ".join(before), space)
    theirs = eval(last, space)
    assert (outputs(theirs, x) - outputs(build_from_file(file).model, x)).abs().max() < 1e-4


@pytest.mark.parametrize("words", [["--rank", "5"], ["--energy", "0.9"], []])
@pytest.mark.parametrize("recipe", ["quickstart", "digits_2d", "digits_lokr", "digits_nonlinear"])
def test_other_updates_have_the_reported_error_in_peft(recipe: str, words: list[str], cli: Cli) -> None:
    file = write_adapter("a.safetensors", recipe)
    done = cli("export", file, "--to", "peft-lora", "--out", "lora", *words, "--json").json()
    found, wanted = peft_delta(peft.PeftModel.from_pretrained(vit(), "lora")), wanted_delta(file, cli)
    assert relative(found, wanted) == pytest.approx(done["error"], rel=1e-3)
    assert 0 < done["error"] < (0.101 if not words else 1)
    with safe_open("lora/adapter_model.safetensors", "pt") as weights:
        told = json.loads(weights.metadata()["superlora.errors"])
    for row in done["weights"]:
        name = row["name"]
        assert told[name] == row["error"]
        assert relative({name: found[name]}, {name: wanted[name]}) == pytest.approx(row["error"], rel=1e-3)
        assert "--rank" not in words or row["rank"] <= 10  # of q and v


def test_the_1x1_convolutions_of_the_unet_are_exact_in_peft(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_unet_lora")
    done = cli("export", file, "--to", "peft-lora", "--out", "lora", "--json").json()
    assert done["error"] == 0
    inputs = noise(4, 3, 16, 16), torch.tensor([0, 300, 600, 999]), torch.tensor([0, 1, 5, 10])
    own, theirs = build_from_file(file).model, peft.PeftModel.from_pretrained(unet(), "lora")
    found, wanted = outputs(theirs, *inputs), outputs(own, *inputs)
    assert (wanted - outputs(unet(), *inputs)).abs().max() > 0.01
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_3x3_convolutions_have_the_reported_error_in_peft(cli: Cli) -> None:
    target = "adapter.targets=['middle.0.conv1','down.0.1']"
    file = write_adapter("a.safetensors", "digits_unet_lora", target, "adapter.rank=3")
    done = cli("export", file, "--to", "peft-lora", "--out", "lora", "--json").json()
    assert done["error"] == 0
    inputs = noise(4, 3, 16, 16), torch.tensor([0, 300, 600, 999]), torch.tensor([0, 1, 5, 10])
    wanted = outputs(build_from_file(file).model, *inputs)
    theirs = peft.PeftModel.from_pretrained(unet(), "lora")
    assert (outputs(theirs, *inputs) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_trained_head_is_a_module_to_save(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora", "model.head=new")
    assert cli("export", file, "--to", "peft-lora", "--out", "lora").code == 0
    theirs = peft.PeftModel.from_pretrained(vit(), "lora")
    x = noise(4, 3, 16, 16)
    assert (outputs(theirs, x) - outputs(build_from_file(file).model, x)).abs().max() < 1e-4


def test_chosen_rows_of_the_head_travel_too(cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora", "model.head={select: [3,4,5,6,7,8,9,0,1,2]}")
    assert cli("export", file, "--to", "peft-lora", "--out", "lora").code == 0
    theirs = peft.PeftModel.from_pretrained(vit(), "lora")
    x = noise(4, 3, 16, 16)
    assert (outputs(theirs, x) - outputs(build_from_file(file).model, x)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_update_of_a_half_precision_base_is_exact_in_peft(dtype: torch.dtype, cli: Cli) -> None:
    base = write_base("half.safetensors", dtype)
    file = write_adapter("a.safetensors", "digits_lora", f"model.checkpoint={base}")
    assert cli("export", file, "--to", "peft-lora", "--out", "lora").code == 0
    theirs = peft.PeftModel.from_pretrained(vit(base).to(dtype), "lora")
    assert relative(peft_delta(theirs), wanted_delta(file, cli)) < 1e-5


def test_a_name_with_the_same_ending_as_a_target_is_unchanged(cli: Cli) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(6, 6)
            self.inner = nn.ModuleDict({"q": nn.Linear(6, 6)})

    from superlora_cli.formats.peft_lora import peft_files

    model = Two()
    targets = expand(model, ["q"])[:1]
    assert targets[0].module == "q"
    found = [approximate(Dense(noise(6, 6)), rank=2)]
    made = loras(targets, found, dict(model.named_modules()))
    files = peft_files(made, modules=dict(model.named_modules()), base="two", head={}, errors={})
    Path("lora").mkdir()
    for name, content in files.items():
        Path("lora", name).write_bytes(content)
    theirs = peft.PeftModel.from_pretrained(model, "lora")
    assert peft_delta(theirs).keys() == {"q"}


SMALL: dict[str, Any] = {
    **{"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
    **{"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 12},
    **{"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4},
}


@pytest.mark.parametrize(("method", "bound"), [("lora", 1e-5), ("lorta", None)])
def test_diffusers_loads_the_file_with_the_update_that_was_exported(
    method: str, bound: float | None, tmp_path: Path
) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return UNet2DConditionModel(**SMALL).eval()

    own, theirs = model(), model()
    targets = expand(own, ["q", "v", "o", "*.conv1"])
    adapter = attach(own, targets, AdapterConfig.from_knobs(method, rank=2))
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.copy_(0.2 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(1)))
    energy = 1.0 if bound else None  # all of it: as many singular values as each weight has
    found = [approximate(Dense(delta.detach().flatten(1)), energy=energy) for delta in adapter.compute()]
    made = loras(targets, found, dict(model().named_modules()))
    path = tmp_path / "lora.safetensors"
    path.write_bytes(diffusers_file({"unet": made}, modules=dict(model().named_modules()), errors={}))
    theirs.load_lora_adapter(str(path), prefix="unet")  # type: ignore[operator]
    deltas = {name: layer.get_delta_weight("default_0").detach() for name, layer in theirs.named_modules()
              if isinstance(layer, peft.tuners.lora.LoraLayer)}  # type: ignore[operator]  # fmt: skip
    wanted = {target.module: delta.detach() for target, delta in zip(targets, adapter.compute(), strict=True)}
    assert relative(deltas, wanted) < (bound or 0.101)
    if bound:
        inputs = noise(2, 4, 8, 8), torch.tensor([1, 50]), noise(2, 3, 12)
        with torch.no_grad():
            ours, plain = own(*inputs).sample, model()(*inputs).sample
            assert (ours - plain).abs().max() > 1e-3
            assert (theirs(*inputs).sample - ours).abs().max() < 1e-5 * ours.abs().max()


def test_an_adapter_of_a_diffusers_unet_is_exported_for_it(cli: Cli) -> None:
    from diffusers import UNet2DModel
    from diffusers.loaders import PeftAdapterMixin

    class Loadable(UNet2DModel, PeftAdapterMixin):
        """UNet2DModel has no loader of its own."""

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1,
             "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
             "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8}  # fmt: skip
    UNet2DModel(**sizes).save_pretrained("base")
    model = "model={name: diffusers, kwargs: {path: base}}"
    file = write_adapter("a.safetensors", "digits_unet_lora", model, "data.image_size=8", "adapter.rank=1")
    done = cli("export", file, "--to", "diffusers-lora", "--out", "lora.safetensors", "--json").json()
    assert done["error"] == 0
    theirs: Any = Loadable.from_pretrained("base", low_cpu_mem_usage=False)
    theirs.load_lora_adapter("lora.safetensors", prefix="unet")
    inputs = noise(2, 3, 8, 8), torch.tensor([1, 50])
    own: Any = build_from_file(file).model
    with torch.no_grad():
        wanted = own(*inputs, torch.zeros(2, dtype=torch.long))
        assert (theirs(*inputs).sample - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("ia3", ["adapter.method=ia3", "adapter.multiply=columns", "adapter.targets=[o,mlp]"]),
        ("oft", ["adapter.method=oft", "adapter.block=8", "adapter.targets=[o,mlp]"]),
        ("oft", ["adapter.method=null", "adapter.groups=1", "adapter.rank=3", "adapter.multiply=rotation",
                 "adapter.block=16", "adapter.targets=[o]"]),
    ],
    ids=["scales", "rotations", "rotations of one matrix"],
)  # fmt: skip
def test_what_multiplies_the_base_is_exact_in_peft(kind: str, overrides: list[str], cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora", "adapter.alpha=null", "adapter.rank=null", *overrides)
    assert cli("export", file, "--to", f"peft-{kind}", "--out", "folder").code == 0
    theirs = peft.PeftModel.from_pretrained(vit(), "folder")
    x = noise(8, 3, 16, 16)
    assert type(theirs.base_model).__name__ == f"{kind.upper()}Model"
    torch.testing.assert_close(outputs(theirs, x), outputs(build_from_file(file).model, x), rtol=1e-4, atol=1e-4)
    assert (outputs(theirs, x) - outputs(vit(), x)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("to", "overrides", "what"),
    [
        ("peft-ia3", [], "multiply is none, not rows or columns"),
        ("peft-ia3", ["adapter.method=ia3"], "has a bias, which PEFT's IA³ multiplies too"),
        ("peft-ia3", ["adapter.method=ia3", "adapter.multiply=columns"], "a whole layer, not of some rows"),
        ("peft-oft", ["adapter.method=oft", "adapter.block=24", "adapter.targets=[o]"], "do not divide its 64 inputs"),
    ],
)
def test_what_pefts_products_cannot_be_is_refused(to: str, overrides: list[str], what: str, cli: Cli) -> None:
    file = write_adapter("a.safetensors", "digits_lora", "adapter.alpha=null", "adapter.rank=null", *overrides)
    result = cli("export", file, "--to", to, "--out", "folder")
    assert result.code == 2
    assert what in result.err
    assert not Path("folder").exists()
