"""Merge an adapter into its language model: a folder that transformers' `from_pretrained` loads, in shards.

A model that was trained without an adapter becomes such a folder, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from superlora_cli.commands.merge_folder import changed, check_folder, merged, result, tolerance, write_folder
from superlora_cli.models.conv1d import as_conv1d
from superlora_cli.models.language import LanguageBase
from superlora_cli.models.quantising import precision
from superlora_cli.opening.build import build_from_file
from superlora_cli.tasks.language.section import LanguageSection
from superlora_cli.tasks.language.task import tokenizer_of

CONFIG = "config.json"
SHARD = "5GB"  # most bytes of a file
SEQUENCES, LENGTH = 4, 16  # of random tokens, on which the merged and the adapted model are compared


def merge_language(
    file: Path,
    out: Path,
    *,
    dtype: torch.dtype | None,
    scale: float,
    verify: bool,
    force: bool,
    allow_mismatch: bool,
) -> dict[str, Any]:
    """Write the language model of an adapter, with ΔW added, and its tokenizer to the folder `out`.

    Args:
        dtype: of the weights; default: as they are.
        scale: a number that ΔW is multiplied by.
        verify: compare the outputs of the model that was written with those of the adapted one.
        force: replace another model's folder.

    Returns:
        As `commands.merge.merge`.

    Raises:
        UsageError: the output exists, or the model cannot be loaded. RunError: the disk is full, or a weight is not
            finite. MismatchError: it is another base, or the verification failed.
    """
    check_folder(out, CONFIG, force=force, what="model")
    built = build_from_file(file, allow_mismatch=allow_mismatch)
    if built.adapter is not None:
        built.adapter.strength = scale
    base, tensors = built.base, changed(built)
    assert isinstance(base, LanguageBase)
    model: Any = base.model
    own = precision(model)
    adapted = _outputs(model)
    model = merged(built).model
    as_conv1d(model)
    if dtype is not None:
        model.to(dtype)
    if base.trained_head:
        names = built.class_names or tuple(map(str, range(model.num_labels)))
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}

    def write(place: Path) -> None:
        model.save_pretrained(place, max_shard_size=SHARD)
        tokenizer_of(built.recipe.section(LanguageSection), base).save_pretrained(place)

    error = write_folder(
        out, write, force=force, adapted=adapted if verify else None,
        outputs=lambda place: _outputs(type(model).from_pretrained(place, dtype="auto")),
        tolerance=tolerance(built, dtype or own) * max(1.0, _size(adapted)),
    )  # fmt: skip
    load = f"model = transformers.{base.architecture.split('.')[1]}.from_pretrained({str(out)!r})"
    return result(built, out, error, tensors=tensors, dtype=dtype or own, over=f"{SEQUENCES} random texts", load=load)


@torch.no_grad()
def _outputs(model: Any) -> Tensor:
    """The logits of fixed random tokens."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids = torch.randint(size, (SEQUENCES, LENGTH), generator=generator)
    found: Tensor = model.eval()(ids, attention_mask=torch.ones_like(ids)).logits.float()
    return found


def _size(outputs: Tensor) -> float:
    """The root mean square of outputs, which are not normalised."""
    return outputs.square().mean().sqrt().item()
