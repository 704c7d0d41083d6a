"""The families of text-to-image pipelines, by the class that a pipeline's `model_index.json` names; one file each.

Another family is one object: `FAMILIES.add("LuminaPipeline", Lumina())`.
"""

from __future__ import annotations

from superlora_cli.models.families.family import Family
from superlora_cli.models.families.flux import Flux
from superlora_cli.models.families.flux_2 import Flux2Klein
from superlora_cli.models.families.pixart import PixArt
from superlora_cli.models.families.qwen_image import QwenImage
from superlora_cli.models.families.sana import Sana
from superlora_cli.models.families.stable_diffusion import StableDiffusion
from superlora_cli.models.families.stable_diffusion_3 import StableDiffusion3
from superlora_cli.models.families.stable_diffusion_xl import StableDiffusionXL
from superlora_cli.models.families.z_image import ZImage
from superlora_cli.table import Table

FAMILIES: Table[Family] = Table(
    "family of pipelines",
    {
        "StableDiffusionPipeline": StableDiffusion(),
        "StableDiffusionXLPipeline": StableDiffusionXL(),
        "StableDiffusion3Pipeline": StableDiffusion3(),
        "FluxPipeline": Flux(),
        "Flux2KleinPipeline": Flux2Klein(),
        "ZImagePipeline": ZImage(),
        "QwenImagePipeline": QwenImage(),
        "SanaPipeline": Sana(),
        "PixArtAlphaPipeline": PixArt(tokens=120),
        "PixArtSigmaPipeline": PixArt(tokens=300),
    },
)
