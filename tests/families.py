"""Families of timm, and the way that a user takes with each of them, from a recipe to PEFT.

    init → train (2 steps) → merge → timm loads it → export → PEFT loads it

Weights are random, models and images small. The adapter is LoRA on the weights that `init` finds, which PEFT can hold
exactly: what is left of a difference is the way's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from superlora_cli.adapter.attach import detach
from superlora_cli.models.repeated import build_seeded
from superlora_cli.opening.build import build_from_file
from tests.conftest import run_cli
from tests.data.conftest import write_folder

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 2}
STAGES = {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 4, 8], "img_size": 64}
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {  # the side of its images, arguments that make it small
    "vit_tiny_patch16_224": (32, {**TINY, "img_size": 32}),
    "deit_tiny_distilled_patch16_224": (32, {**TINY, "img_size": 32}),
    "beit_base_patch16_224": (32, {**TINY, "img_size": 32}),
    "eva02_tiny_patch14_224": (28, {**TINY, "img_size": 28}),
    "vit_tiny_r_s16_p8_224": (64, {**TINY, "img_size": 64}),
    "cait_xxs24_224": (32, {**TINY, "img_size": 32}),
    "convit_tiny": (32, {"embed_dim": 16, "depth": 2, "num_heads": 2, "local_up_to_layer": 1, "img_size": 32}),
    "swin_tiny_patch4_window7_224": (64, {**STAGES, "window_size": 2}),
    "swinv2_tiny_window8_256": (64, {**STAGES, "window_size": 2}),
    "xcit_nano_12_p16_224": (64, {"depth": 2}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "visformer_tiny": (64, {"img_size": 64}),
    "volo_d1_224": (64, {"img_size": 64}),
    "levit_128s": (64, {"img_size": 64}),
    "pit_ti_224": (64, {"img_size": 64}),
    "crossvit_tiny_240": (240, {}),
    "efficientformer_l1": (224, {}),
    "tiny_vit_5m_224": (224, {}),
    "mvitv2_tiny": (64, {"img_size": 64}),
    "hiera_tiny_224": (64, {"img_size": 64}),
    "gcvit_xxtiny": (64, {"img_size": 64}),
    "coatnet_nano_rw_224": (64, {"img_size": 64}),
    "efficientvit_m0": (64, {"img_size": 64}),
    "coat_tiny": (64, {"img_size": 64}),
    "vit_relpos_small_patch16_224": (32, {**TINY, "img_size": 32}),
    "samvit_base_patch16_224": (32, {**TINY, "img_size": 32}),
    "naflexvit_base_patch16_gap": (32, {**TINY, "img_size": 32}),
    "tnt_s_patch16_224": (32, {"depth": 2, "img_size": 32}),
    "deepseek_vit_412m": (28, {**TINY, "img_size": 28}),
    "gemma4_vit_167m": (48, {**TINY, "head_dim": 24, "intermediate_size": 96, "img_size": 48}),
    "qwen3_vit_88m": (32, {**TINY, "img_size": 32}),
    "swinv2_cr_tiny_224": (64, STAGES),
    "nest_tiny": (64, {"img_size": 64}),
    "sequencer2d_s": (64, {"img_size": 64}),
    "vitamin_small_224": (64, {"img_size": 64}),
    "efficientformerv2_s0": (64, {"img_size": 64}),
    "botnet26t_256": (64, {"img_size": 64}),
    "vgg11": (64, {"mlp_ratio": 0.05}),
    "nasnetalarge": (96, {"stem_size": 32, "num_features": 1056}),
    **dict.fromkeys(("pnasnet5large", "inception_v3", "inception_v4", "inception_resnet_v2"), (96, {})),
    **dict.fromkeys(
        ("efficientvit_b0", "repvit_m0_9", "resnet18", "convnext_atto", "convnextv2_atto", "efficientnet_b0",
         "mobilenetv3_small_050", "mobilenetv4_conv_small", "mobilevit_xxs", "mobilevitv2_050", "pvt_v2_b0",
         "twins_pcpvt_small", "davit_tiny", "focalnet_tiny_srf", "poolformer_s12", "caformer_s18",
         "edgenext_xx_small", "nextvit_small", "fastvit_t8", "fasternet_t0", "inception_next_tiny", "regnetx_002",
         "resnest14d", "densenet121", "dla46_c", "dpn48b", "hrnet_w18_small", "hgnetv2_b0", "ghostnet_050",
         "repghostnet_050", "mobileone_s0", "repvgg_a0", "skresnet18", "selecsls42", "rexnet_100", "res2net50_14w_8s",
         "ese_vovnet19b_dw", "xception41", "mambaout_femto", "starnet_s1", "shvit_s1", "swiftformer_xs",
         "nf_resnet26", "eca_nfnet_l0", "iformer_t", "efficientvim_m1", "rdnet_tiny", "tresnet_m", "lowformer_b0",
         "convmixer_768_32", "cpubone_nano", "csatv2", "cspresnet50", "cspnext_tiny", "hardcorenas_a",
         "hieradet_small", "lcnetv2_small", "mobilenetv5_base", "resnetv2_18", "legacy_seresnet18",
         "legacy_xception"),
        (64, {}),
    ),
}  # fmt: skip
NARROW = ("mobileone_s0", "eca_nfnet_l0", "csatv2", "lcnetv2_small")  # have weights with a side of 1
FEW = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224",
       "swin_tiny_patch4_window7_224", "visformer_tiny", "volo_d1_224", "levit_128s", "efficientvit_b0", "repvit_m0_9",
       "resnet18", "convnext_atto")  # of every kind one  # fmt: skip


@dataclass(frozen=True)
class Walk:
    """What came of a family.

    Attributes:
        targets: weights that are adapted; `head`: number of trained parameters beside them.
        changed: largest difference of the adapted model's outputs from those without ΔW, in parts of the largest.
        merged, exported: the same of the merged and the exported model from the adapted one; `exported` is None where
            it was refused.
        refused: why.
    """

    model: str
    targets: int
    adapter: int
    head: int
    changed: float
    merged: float
    exported: float | None
    refused: str = ""


class StoppedError(Exception):
    """A command that should have worked did not."""


def walk(name: str, folder: Path) -> Walk:
    """Take the way with a model, in an empty folder.

    Raises:
        StoppedError: says which command failed and how.
    """
    import peft
    import timm

    size, kwargs = FAMILIES[name]
    small = ("model.checkpoint=base.safetensors", f"model.kwargs={kwargs}", f"data.image_size={size}",
             "data.augment=none", "data.workers=0", "data.validation=0.25",
             "adapter.method=lora", "adapter.order=2", f"adapter.rank={1 if name in NARROW else 2}",
             "train.steps=2", "train.batch_size=4", "train.checkpoint_every=null", "train.precision=fp32",
             "train.threads=1", "train.optimizer={name: AdamW, lr: 0.02}", "train.scheduler={name: constant}",
             "eval.every=null")  # fmt: skip
    with contextlib.chdir(folder):
        write_folder(Path("pets"), classes="ab", count=8)
        _write_base(name, kwargs)
        _done("init", "--model", name, "--data", "pets", "--no-pretrained", "--out", "r.yaml")
        trained = _done("train", "r.yaml", *small, "--out", "run", "--json")
        _done("merge", "run", "--out", "merged.safetensors")
        built = build_from_file(Path("run/adapter.safetensors"))
        assert built.adapter
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        adapted = outputs(built.model, images)
        merged = timm.create_model(name, num_classes=2, checkpoint_path="merged.safetensors", **kwargs)
        exported = run_cli("export", "run", "--to", "peft-lora", "--out", "lora")
        off, refused = None, ""
        if exported.code == 0:
            base = build_seeded(built.recipe.model, built.recipe.seed, classes=2, image_size=size).model
            off = apart(outputs(peft.PeftModel.from_pretrained(base, "lora"), images), adapted)
        elif exported.code == 2:
            refused = exported.message.removeprefix("superlora: ")
        else:
            raise StoppedError(f"export: {exported.err}")
        targets, params = len(built.adapter.targets), trained["params"]
        detach(built.model)
        changed = apart(outputs(built.model, images), adapted)
        whole = apart(outputs(merged, images), adapted)
        return Walk(name, targets, params["adapter"], params["head"], changed, whole, off, refused)


def _write_base(name: str, kwargs: dict[str, Any]) -> None:
    """Random weights in which every branch counts: many models begin with some that are scaled by nothing."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=1) and parameter.abs().max() < 1e-3:
                parameter.uniform_(0.5, 1.5)
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, "base.safetensors")


def _done(*words: str) -> Any:
    result = run_cli(*words)
    if result.code:
        raise StoppedError(f"{words[0]}: {result.out if '--json' in words else result.err}")
    return result.json() if "--json" in words else None


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """In evaluation mode."""
    found: Tensor = model.eval()(images)
    return found.float()


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, in parts of the largest output."""
    return ((one - other).abs().max() / other.abs().max()).item()
