"""What trainers write in the header of a file, by which tools show its name, its base and its trigger words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from superlora_cli.models.pipelines import PipelineBase
from superlora_cli.opening.shapes_only import Stored


def about(adapter: Stored, title: str, network: Mapping[str, str]) -> dict[str, str]:
    """The entries `ss_…`, as kohya's scripts name them, and `modelspec.…`, a standard of Stability AI.

    Args:
        title: the name of the file.
        network: the entries about the kind of adapter.
    """
    trigger = trigger_of(adapter.recipe.data.caption)
    said = {**network, "ss_output_name": title, "ss_sd_model_name": adapter.stored.base["name"].rpartition("/")[2]}
    spec = {"sai_model_spec": "1.0.0", "title": title, "implementation": "diffusers"}
    if isinstance(base := adapter.base, PipelineBase):
        program, architecture = base.family.naming.version(base.model)
        if program:
            said["ss_base_model_version"], spec["architecture"] = program, f"{architecture}/lora"
        spec["resolution"] = f"{base.image_size}x{base.image_size}"
    if trigger:
        said["ss_tag_frequency"] = json.dumps({title: {trigger: 1}})
        spec["trigger_phrase"] = trigger
    return {**said, **{f"modelspec.{key}": value for key, value in spec.items()}}


def trigger_of(caption: str | None) -> str:
    """What every caption of the training had in common.

    >>> trigger_of("a photo of sks dog, {text}"), trigger_of(None)
    ('a photo of sks dog', '')
    """
    return re.sub(r"\s+", " ", re.sub(r"{\w+}", "", caption or "")).strip(" ,.;:")
