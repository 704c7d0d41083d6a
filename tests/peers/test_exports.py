"""Exported files are loaded by other libraries, and files of other libraries imported, with the same ΔW."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import lycoris
import peft
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from superlora_cli.models.families import FAMILIES
from superlora_cli.models.families.naming import weighted
from tests import pipelines
from tests.conftest import Cli, run_cli
from tests.makers import deltas_of, relative
from tests.peers.exporting import adapter_of, cells, denoiser_of, lora_layers, lycoris_deltas, lycoris_with

RECORD = Path(__file__).parents[2] / "benchmarks" / "records" / "exports.jsonl"
SOME = [("LoRA, convolutions too", "StableDiffusionXL"), ("LoHa", "StableDiffusion3"), ("LoKr", "StableDiffusion")]
SOME += [("LoRTA", "Flux"), ("KronA", "Flux"), ("LoRA", "Flux"), ("Uni-LoRA", "StableDiffusion")]


@pytest.mark.parametrize(("variant", "family"), SOME)
def test_what_is_loaded_is_what_is_on_record(variant: str, family: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    (row,) = [row for row in rows if (row["variant"], row["family"]) == (variant, family)]
    found = cells(variant, family, tmp_path)
    assert found.keys() == row["cells"].keys()
    for column, told in row["cells"].items():
        assert found[column] == (told if isinstance(told, str) else pytest.approx(told, rel=1e-3, abs=1e-5)), column


class Filled(dict[str, Tensor]):
    """A checkpoint that has what a converter asks for beside the weights: biases and norms."""

    def __missing__(self, key: str) -> Tensor:
        return torch.zeros(3 * 7 * 3072)

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, *(default or [self.__missing__(key)]))


def denoiser(family: str) -> tuple[Any, Callable[..., dict[str, Tensor]]]:
    """A denoiser of a real width without values, and diffusers' converter of its original checkpoints."""
    if family == "Flux":
        make = partial(diffusers.FluxTransformer2DModel, num_layers=2, num_single_layers=2, guidance_embeds=True)
        convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    elif family == "StableDiffusion3":
        make = partial(diffusers.SD3Transformer2DModel, num_layers=2, dual_attention_layers=(0,))
        convert = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    else:
        config = denoiser_of(pipelines.made(family)).config
        make = partial(diffusers.UNet2DConditionModel.from_config, config)
        convert = partial(single_file_utils.convert_ldm_unet_checkpoint, config=dict(config))
    with torch.device("meta"):
        return make(), convert


@pytest.mark.parametrize("family", ["StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux"])
def test_original_names_are_those_that_diffusers_converts(family: str) -> None:
    """A checkpoint by its original names, made from weights by diffusers' names, is converted to these weights."""
    model, convert = denoiser(family)
    weights = {name: torch.rand(rows, 1, generator=torch.Generator().manual_seed(rows + number))
               for number, (name, rows) in enumerate(weighted(model).items())}  # fmt: skip
    naming = FAMILIES[type(pipelines.made(family)).__name__].naming
    originals = naming.originals(model)
    state = Filled()
    for name, rows in originals.items():
        whole = torch.cat([weights[one.module][one.start : one.stop] for one in rows])
        state |= {f"model.diffusion_model.{name}.weight": whole, f"model.diffusion_model.{name}.bias": whole[:, 0]}
    back = convert(state)
    for name, weight in weights.items():
        assert torch.equal(back[f"{name}.weight"], weight), name


TEXTS = {
    "StableDiffusion": ["text_encoder.*.q_proj", "text_encoder.*.fc1"],
    "StableDiffusionXL": ["text_encoder.*.fc1", "text_encoder_2.*.*_proj", "text_encoder_2.text_projection"],
    "StableDiffusion3": ["text_encoder.*.q_proj", "text_encoder_2.*.out_proj"],
    "Flux": ["text_encoder.*.k_proj"],
}
WHOLE = ["text_encoder.*.self_attn.*", "text_encoder.*.mlp.*"]  # as trainers adapt it


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["LoRA", "KronA"])
@pytest.mark.parametrize("family", TEXTS)
def test_text_encoders_are_loaded_by_diffusers(family: str, variant: str, tmp_path: Path) -> None:
    """Images are those of the pipeline with ΔW in its weights; ranks differ where LoRA is an approximation."""
    said = set()
    for form, targets in (("diffusers-lora", TEXTS[family]), ("kohya", TEXTS[family]), ("kohya", WHOLE)):
        file = adapter_of(variant, family, tmp_path, f"targets={['q', *targets]}")
        out = tmp_path / f"{form}.safetensors"
        limits = () if variant == "LoRA" else ("--energy", "1")
        done = run_cli("export", file, "--to", form, "--out", out, "--force", "--json", *limits).json()
        said.add((form, targets is WHOLE, readable := "load_lora_weights" in done["load"]))
        if readable:
            wanted, pipeline = painted(adapted(family, deltas_of(file))), copy.deepcopy(pipelines.made(family))
            assert (painted(pipeline) - wanted).abs().max() > 1e-3
            pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
            assert lora_layers(pipeline.text_encoder)
            assert (painted(pipeline) - wanted).abs().max() < 1e-4, form
    dotted = family in ("StableDiffusion3", "Flux")
    assert said == {
        ("diffusers-lora", False, True), ("kohya", False, dotted), ("kohya", True, dotted or variant == "LoRA")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "targets", "kohya", "diffusers"),
    [
        ("PixArtSigma", "[q]", False, "PixArtSigmaPipeline loads no LoRA (--to kohya or peft-lora)"),
        ("Sana", "[mlp]", False, "PEFT has no LoRA for it: a convolution in 80 groups"),
        ("Sana", "[q]", True, ""),
    ],
)
def test_only_what_diffusers_loads_is_said_to_be(
    family: str, targets: str, kohya: bool, diffusers: str, tmp_path: Path
) -> None:
    file = adapter_of("LoRA", family, tmp_path, f"targets={targets}")
    done = run_cli("export", file, "--to", "kohya", "--out", tmp_path / "kohya", "--json").json()
    assert ("load_lora_weights" in done["load"]) == kohya
    result = run_cli("export", file, "--to", "diffusers-lora", "--out", tmp_path / "diffusers")
    assert (result.code, diffusers in result.err) == (2 if diffusers else 0, True)


def adapted(family: str, deltas: dict[str, Tensor]) -> Any:
    """A pipeline with ΔW in its weights."""
    found = copy.deepcopy(pipelines.made(family))
    for name, delta in deltas.items():
        part, _, rest = name.partition(".")
        inside = getattr(found, part).get_submodule(rest) if hasattr(found, part) else None
        (inside or denoiser_of(found).get_submodule(name)).weight.data += delta
    return found


@pytest.mark.parametrize(
    ("family", "target", "key"),
    [
        ("StableDiffusion3", "text_encoder_3.*.SelfAttention.q", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
        ("Flux", "text_encoder_2.*.SelfAttention.q", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    ],
)
def test_t5_has_kohyas_keys_and_no_place_in_diffusers(family: str, target: str, key: str, tmp_path: Path) -> None:
    file = adapter_of("LoRA", family, tmp_path, f"targets=['q', '{target}']")
    done = run_cli("export", file, "--to", "kohya", "--out", tmp_path / "kohya", "--json")
    assert "load_lora_weights" not in done.json()["load"]
    parts = {name.removeprefix(f"{key}.") for name in load_file(tmp_path / "kohya") if name.startswith(f"{key}.")}
    assert parts == {"lora_up.weight", "lora_down.weight", "alpha"}
    refused = run_cli("export", file, "--to", "diffusers-lora", "--out", tmp_path / "new")
    assert (refused.code, f"{target.partition('.')[0]} is adapted as well" in refused.message) == (2, True)
    wanted = deltas_of(file)
    with contextlib.chdir(tmp_path):
        assert relative(imported("kohya", f"diffusers:{family}"), wanted) < 1e-5


def painted(pipeline: Any) -> Tensor:
    """The latents of an image after three steps."""
    noise = torch.Generator().manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    words = {"width": 16, "height": 16, "num_inference_steps": 3, "generator": noise, "output_type": "latent"}
    found: Tensor = pipeline("a dog", **words).images
    return found


def imported(file: Path | str, base: str, *words: str) -> dict[str, Tensor]:
    """Module → ΔW of what `superlora import` makes."""
    done = run_cli("import", file, "--base", base, "--out", "adapter.safetensors", "--force", *words)
    assert done.code == 0, done.err
    return deltas_of("adapter.safetensors")


def random_numbers(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


LYCORIS: list[dict[str, Any]] = [
    {"algo": "lora", "linear_dim": 2, "linear_alpha": 1, "use_tucker": True},
    {"algo": "loha", "linear_dim": 2, "linear_alpha": 3, "use_tucker": True},
    {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "use_tucker": True},  # first factors of 2 × 2 to 8 × 16
    {"algo": "lokr", "linear_dim": 1, "linear_alpha": 3, "factor": 2, "decompose_both": True},
    {"algo": "full"},
]


@pytest.mark.parametrize("settings", LYCORIS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_what_lycoris_trains_is_imported(settings: dict[str, Any], cli: Cli, tmp_path: Path) -> None:
    pipelines.saved("StableDiffusion", tmp_path / "base")
    model = denoiser_of(copy.deepcopy(pipelines.made("StableDiffusion")))
    targets = {"enable_conv": True, "target_module": ["ResnetBlock2D", "Attention"]}
    with lycoris_with(targets):
        network = lycoris.create_lycoris(model, 1.0, conv_dim=2, conv_alpha=3, **settings)
    network.apply_to()
    random_numbers(network)
    wanted = lycoris_deltas(network, model, trained=True)
    network.save_weights("lycoris.safetensors", torch.float32, {})
    found = imported("lycoris.safetensors", "diffusers:base", "--partial")  # without the biases of `full`
    assert relative(found, wanted) < 1e-5


PEFT: list[Any] = [
    peft.LoraConfig(r=4, lora_alpha=7, target_modules=["qkv"], rank_pattern={"blocks.1.attn.qkv": 2}),
    peft.LoraConfig(r=4, lora_alpha=7, use_rslora=True, target_modules=["qkv"], alpha_pattern={"^blocks.0.*qkv": 1}),
    peft.LoKrConfig(r=2, alpha=3, target_modules=["qkv"], decompose_factor=4),
    peft.LoHaConfig(r=2, alpha=3, target_modules=["qkv", "fc1"]),
    peft.VeraConfig(r=3, target_modules=["qkv", "fc2"], save_projection=True),
]


@pytest.mark.parametrize("config", PEFT, ids=lambda config: f"{config.peft_type.value}")
def test_what_peft_trains_is_imported(config: Any, cli: Cli) -> None:
    from tests.peers.test_export import vit

    model = peft.get_peft_model(vit(), config)
    random_numbers(model)
    model.save_pretrained("peft")
    layers = {
        name: layer for name, layer in model.base_model.model.named_modules() if hasattr(layer, "get_delta_weight")
    }
    wanted = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    for file in ("peft", "peft/adapter_model.safetensors"):
        assert relative(imported(file, "glyphs_vit"), wanted) < 1e-5


def test_what_diffusers_saves_is_imported(cli: Cli, tmp_path: Path) -> None:
    pipelines.saved("StableDiffusion", tmp_path / "base")
    pipeline = copy.deepcopy(pipelines.made("StableDiffusion"))
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "conv1"]))
    random_numbers(pipeline.unet)
    layers = peft.get_peft_model_state_dict(pipeline.unet)
    settings = {"unet": pipeline.unet.peft_config["default"].to_dict()}
    type(pipeline).save_lora_weights("saved", layers, unet_lora_adapter_metadata=settings["unet"])
    found = imported("saved/pytorch_lora_weights.safetensors", "diffusers:base")
    assert relative(found, lora_layers(pipeline.unet)) < 1e-5


def test_rows_of_a_fused_weight_go_to_the_modules_that_it_stacks(cli: Cli, tmp_path: Path) -> None:
    """As kohya's scripts write FLUX: by the names of the original checkpoint."""
    pipelines.saved("Flux", tmp_path / "base")
    shapes = {"double_blocks_0_img_attn_qkv": (96, 32), "single_blocks_0_linear1": (224, 32)}
    shapes |= {"final_layer_adaLN_modulation_1": (64, 32), "double_blocks_0_txt_mlp_2": (32, 128)}
    generator = torch.Generator().manual_seed(0)
    tensors, whole = {}, {}
    for name, (rows, columns) in shapes.items():
        up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
        key = f"lora_unet_{name}"
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(3.0)}
        whole[name] = up @ down * 1.5
    save_file(tensors, "kohya.safetensors")
    q, k, v = whole["double_blocks_0_img_attn_qkv"].split(32)
    shift, scale = whole["final_layer_adaLN_modulation_1"].split(32)
    one = dict(zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                   whole["single_blocks_0_linear1"].split((32, 32, 32, 128)), strict=True))  # fmt: skip
    wanted = {
        **{f"transformer_blocks.0.attn.to_{name}": part for name, part in zip("qkv", (q, k, v), strict=True)},
        **{f"single_transformer_blocks.0.{name}": part for name, part in one.items()},
        "transformer_blocks.0.ff_context.net.2": whole["double_blocks_0_txt_mlp_2"],
        "norm_out.linear[0:32]": scale,
        "norm_out.linear[32:64]": shift,
    }
    assert relative(imported("kohya.safetensors", "diffusers:base"), wanted) < 1e-6
