"""How similar generated images are to real ones by DINO, and to their prompts by CLIP (Ruiz et al. 2023, section 5.1).

Both models are read by transformers, from a folder or the Hugging Face hub.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

from superlora_cli.errors import UsageError
from superlora_cli.generation.image_sets import ImageSet
from superlora_cli.models.pipelines import EXTRA, hush
from superlora_cli.progress import with_bar

BATCH = 32


def dino_similarity(name: str, images: ImageSet, reference: ImageSet, device: torch.device) -> float:
    """The mean cosine between the embeddings of all pairs of a generated and a real image.

    Args:
        name: a ViT such as facebook/dinov2-base; an image's embedding is its class token.

    Raises:
        UsageError: the model cannot be loaded.
    """
    model, processor = load_judge(name, "--dino", device)

    def embed(pixels: Tensor) -> Tensor:
        found: Tensor = model(pixel_values=pixels).last_hidden_state[:, 0]
        return found

    means = [_embedded(side, processor, embed, device).mean(0) for side in (images, reference)]
    return float(means[0] @ means[1])  # the mean over pairs of unit vectors is the product of the means


def clip_similarity(name: str, images: ImageSet, device: torch.device) -> float:
    """The mean cosine between the embeddings of an image and of its prompt.

    Args:
        name: a CLIP model such as openai/clip-vit-base-patch32.

    Raises:
        UsageError: the images have no prompts, or the model cannot be loaded.
    """
    if images.prompts is None:
        raise UsageError("the images have no prompts", where="--clip", hint="images of superlora generate have them")
    model, processor = load_judge(name, "--clip", device)

    def embed(pixels: Tensor) -> Tensor:
        return _pooled(model.get_image_features(pixel_values=pixels))

    texts, read = list(dict.fromkeys(images.prompts)), []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        with torch.no_grad():
            tokens = processor(text=part, padding=True, truncation=True, return_tensors="pt").to(device)
            read.append(functional.normalize(_pooled(model.get_text_features(**tokens)).float().cpu(), dim=-1))
    places = {text: place for place, text in enumerate(texts)}
    own = torch.cat(read)[[places[prompt] for prompt in images.prompts]]
    return float((_embedded(images, processor, embed, device) * own).sum(-1).mean())


def _pooled(found: Any) -> Tensor:
    """The embedding in a model's answer, which is a tensor or has one."""
    pooled: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return pooled


def load_judge(name: str, where: str, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """A model and its processor.

    Args:
        where: the option that names it, `--dino` or `--clip`.

    Raises:
        UsageError: it cannot be loaded, or cannot do what the option asks for.
    """
    if find_spec("transformers") is None:
        raise UsageError("needs the library transformers", where=where, hint=EXTRA)
    from transformers import AutoModel, AutoProcessor

    hush()
    try:
        model, processor = AutoModel.from_pretrained(name, use_safetensors=True), AutoProcessor.from_pretrained(name)
    except Exception as error:  # of the hub's library, requests, or the operating system
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = "a folder written by save_pretrained, or a name on the hub"
        raise UsageError(f"cannot be loaded: {cause}", where=f"{where} {name}", hint=hint) from None
    if where == "--clip" and not hasattr(model, "get_text_features"):
        raise UsageError("reads no text", where=f"--clip {name}", hint="--clip openai/clip-vit-base-patch32")
    return model.to(device).eval(), processor


@torch.no_grad()
def _embedded(images: ImageSet, processor: Any, embed: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Unit vectors (n, d)."""
    found = []
    starts = range(0, len(images), BATCH)
    for start in with_bar(starts, f"embedding {images.name}", total=len(starts), size=lambda start: 1):
        part = [to_pil_image(images[index]) for index in range(start, min(start + BATCH, len(images)))]
        pixels = processor(images=part, return_tensors="pt")["pixel_values"].to(device)
        found.append(functional.normalize(embed(pixels).float().cpu(), dim=-1))
    return torch.cat(found)
