"""Renames the tensors of vision encoders from transformers to the names of the original checkpoints.

Those are the names that timm's filters understand: those of DINOv2 and DINOv3, OpenAI's for CLIP, and timm's own for
ViT, DeiT and SigLIP.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]

CLIP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    r"encoder.layers.(\d+).": r"transformer.resblocks.\1.",
    "self_attn.qkv.": "attn.in_proj_",
    "self_attn.out_proj": "attn.out_proj",
    r"layer_norm([12])": r"ln_\1",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
SIGLIP = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "post_layernorm": "norm",
    r"encoder.layers.(\d+).": r"blocks.\1.",
    "self_attn.qkv": "attn.qkv",
    "self_attn.out_proj": "attn.proj",
    r"layer_norm([12])": r"norm\1",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_": "attn_pool.in_proj.",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp": "attn_pool.mlp",
}
VIT = {  # ViT, DeiT, DINOv2
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    r"(encoder|layers?).(layer.)?(\d+).": r"blocks.\3.",
    "attention.attention.qkv": "attn.qkv",
    "attention.qkv": "attn.qkv",
    "attention.(output.dense|o_proj)": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    r"layer_scale([12]).lambda1": r"ls\1.gamma",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "layernorm.": "norm.",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
DINOV3 = {
    **VIT,
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "mlp.up_proj": "mlp.fc1",
    "mlp.down_proj": "mlp.fc2",
}
PARTS = re.compile(r"^(.*\.)(query|key|value|[qkv]_proj|q|k|v)\.(weight|bias)$")  # of a fused qkv
ORDER = {"q": 0, "k": 1, "v": 2}


def original_names(state: State, said: list[str]) -> State:
    """The tensors with the names of the original checkpoint, if they have those of transformers; else unchanged.

    Args:
        said: a note about the renaming is appended to it.
    """
    for kind, mark, convert in KINDS:
        found = next((re.match(mark, name) for name in state if re.match(mark, name)), None)
        if found:
            said.append(f"renamed from transformers' {kind}")
            prefix = found[1] or ""
            inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            outside = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
            return convert(_fused(inside), outside)
    return state


def _fused(state: State) -> State:
    """Stack q, k and v to `qkv`; a missing bias becomes zeros if the others have one."""
    fused: State = {}
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := PARTS.match(name):
            groups.setdefault((match[1], match[3]), {})[match[2][0]] = tensor
        else:
            fused[name] = tensor
    for (place, kind), parts in groups.items():
        blank = torch.zeros_like(next(iter(parts.values())))
        fused[f"{place}qkv.{kind}"] = torch.cat([parts.get(part, blank) for part in ORDER])
    return fused


def _renamed(state: State, names: dict[str, str]) -> State:
    def renamed(name: str) -> str:
        for pattern, other in names.items():
            name = re.sub(rf"(?:^|(?<=\.)){pattern.replace('.', '[.]')}", other, name, count=1)
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


def _clip(state: State, outside: State) -> State:
    found = {f"visual.{name}": tensor for name, tensor in _renamed(state, CLIP).items()}
    if "visual_projection.weight" in outside:
        found["visual.proj"] = outside["visual_projection.weight"].T
    return found


def _siglip(state: State, outside: State) -> State:
    found = _renamed(state, SIGLIP)
    found["pos_embed"] = found["pos_embed"][None]
    for kind in ("weight", "bias"):
        if (whole := found.pop(f"attn_pool.in_proj.{kind}", None)) is not None:
            width = len(whole) // 3
            found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = whole[:width], whole[width:]
    return found


def _vit(state: State, outside: State) -> State:
    found = _renamed(state | outside, VIT)
    if "register_tokens" in found:
        found.setdefault("mask_token", found["cls_token"])  # by which timm recognises DINOv2
    return found


def _dinov3(state: State, outside: State) -> State:
    return _renamed(state | outside, DINOV3)


KINDS: tuple[tuple[str, str, Callable[[State, State], State]], ...] = (
    ("CLIP", r"^(.*?vision_model\.|)embeddings\.class_embedding$", _clip),
    ("SigLIP", r"^(.*?vision_model\.|)embeddings\.position_embedding\.weight$", _siglip),
    ("DINOv3", r"^(.*?)embeddings\.patch_embeddings\.weight$", _dinov3),
    ("ViT", r"^(.*?)embeddings\.patch_embeddings\.projection\.weight$", _vit),
)
