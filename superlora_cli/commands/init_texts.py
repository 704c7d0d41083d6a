"""The starting recipe that `superlora init` writes for a user's own texts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superlora_cli.adapter.config import NEWEST, RATE
from superlora_cli.commands.starting import first_targets, inline
from superlora_cli.data.known import is_embedded
from superlora_cli.data.text_files import read_text_files
from superlora_cli.data.text_rows import LABEL, Row
from superlora_cli.errors import UsageError
from superlora_cli.models.language import LanguageBase
from superlora_cli.opening.base import open_base
from superlora_cli.recipe.defaults import HEAD_RATE
from superlora_cli.recipe.load import recipe_from_dict
from superlora_cli.tasks.language.encoding import encode, encode_whole
from superlora_cli.tasks.language.task import takes_positions

MODEL = "transformers:Qwen/Qwen3-0.6B"  # if none is named
EPOCHS, FEWEST, MOST = 3, 100, 5000  # epochs; fewest and most steps
BATCH, EVALUATIONS = 8, 10
SHORTEST = 128  # tokens of a sequence: several short texts share one
MEASURED, FITTING = 1000, 0.99  # texts whose tokens are counted, and the share of them that fit into a sequence
ENOUGH = 50  # validation texts needed to select a step
LEARNED = {
    "messages": "the answers in conversations",
    "choices": "the right one of several answers",
    "prompt": "the completions of prompts",
    LABEL: "the labels of texts",
    "text": "all of every text",
}
TARGETS = (["q", "v"], ["all-linear"])
HELD = (  # by the number of parts that the data lack
    "",
    "  validation: 0.1   # a tenth is held out to judge by; the data have texts to test it\n",
    "  validation: 0.1   # a tenth is held out to judge by, a tenth to test it\n",
)
TEMPLATE = """\
# {model} on the texts in {data}: {texts:,} training texts, to learn {learned}.
# superlora preview {file}   # shows them as tokens
# superlora train {file}   # {adapter:,} parameters{and_head}
task: language
seed: 0
model: {{name: {model_yaml}{head}}}
data:
  name: {data_yaml}
{held}language:
  length: {length}   # tokens; {fitting:.0%} of the texts fit{more}
# if this learns too little: {{method: lora, targets: [all-linear], rank: 8}}, at a rate from find-rate (below)
adapter: {{method: lorta, targets: {targets}, order: 3, rank: 4}}   # a higher rank has more parameters
train:
  steps: {steps}   # {epochs:.0f} epochs
  batch_size: {batch}
  precision: {precision}
  clip_norm: 1.0   # limits steps on unusually large gradients
  # superlora find-rate {file} tries rates on these texts
  optimizer: {{name: AdamW, lr: {rate}{head_rate}, weight_decay: 0.0}}
  scheduler: {{name: OneCycleLR, pct_start: 0.1}}
  checkpoint_every: {every}
eval: {{{evaluation}batch_size: {batch}}}
"""


@dataclass(frozen=True)
class TextStart:
    """A starting recipe for texts.

    Attributes:
        text: the YAML.
        texts: number of training texts.
        length: most tokens of a sequence.
        adapter, head: numbers of trained parameters.
        notes: on the data, one line each.
    """

    text: str
    texts: int
    length: int
    adapter: int
    head: int
    notes: tuple[str, ...]


def starting_text_recipe(model: str | None, data: Path, file: Path, *, pretrained: bool = True) -> TextStart:
    """A recipe that adapts a language model to the texts of a file or folder, to be written to `file`.

    Of the model, the tokenizer is read, but no weights.

    Raises:
        UsageError: there is no such model, there are no texts, or the model cannot take them.
    """
    model = model or MODEL
    source = read_text_files(data, None)
    rows = source.train.rows
    if not rows:
        raise UsageError("no texts to train on", where=str(data), hint="add train")
    kinds = {next(kind for kind in LEARNED if kind in row) for row in rows}
    labelled = kinds == {LABEL}
    plain = {"task": "language", "model": {"name": model}, "data": {"name": str(data)}, "train": {"steps": 1}}
    base = open_base(recipe_from_dict({**plain, "adapter": {"method": "lora"}}, "--model", defaults=NEWEST),
                     weights=False)  # fmt: skip
    if not isinstance(base, LanguageBase):
        raise UsageError(f"{model} is no language model", where="--model", hint="transformers:NAME or a folder")
    length, fitting, mean = _lengths(rows, base, labelled=labelled)
    packs = not labelled and takes_positions(base.model)
    missing = (source.validation is None) + (source.test is None)
    left = len(rows) - missing * round(0.1 * len(rows))
    sequences = max(1, round(left * mean / length) if packs else left)
    batch = min(BATCH, sequences)
    steps = min(MOST, max(FEWEST, round(EPOCHS * sequences / batch)))
    every = max(1, steps // EVALUATIONS)
    judged = round(0.1 * len(rows)) if source.validation is None else len(source.validation)
    more = "" if packs or labelled else "\n  pack: false   # the model cannot keep texts in one sequence apart"
    place = f"./{data}" if is_embedded(str(data)) else str(data)  # not the embedded data of the same name
    settings: dict[str, Any] = {
        "model": model, "data": data, "file": shlex.quote(str(file)), "texts": len(rows), "model_yaml": inline(model),
        "data_yaml": inline(place), "learned": " and ".join(LEARNED[kind] for kind in LEARNED if kind in kinds),
        "head": (", head: new" if labelled else "") + ("" if pretrained else ", pretrained: false"),
        "held": HELD[(source.validation is None) + (source.test is None)],
        "length": length, "fitting": fitting, "more": more + ("\n  judge: choices" if kinds == {"choices"} else ""),
        "steps": steps, "epochs": steps * batch / sequences, "batch": batch, "every": every,
        "precision": "bf16" if torch.cuda.is_available() else "fp32", "rate": RATE,
        "head_rate": f", head_lr: {HEAD_RATE}" if labelled else "",
        "evaluation": f"every: {every}, " if judged >= ENOUGH else "", "adapter": 0, "and_head": "",
    }  # fmt: skip
    built = first_targets(TEMPLATE, settings, TARGETS)
    adapter, head = built.params["adapter"], built.params["head"]
    settings |= {"adapter": adapter, "and_head": f" + head {head:,}" if head else ""}
    return TextStart(TEMPLATE.format(**settings), len(rows), length, adapter, head, source.notes)


def _lengths(rows: Sequence[Row], base: LanguageBase, *, labelled: bool) -> tuple[int, float, float]:
    """Tokens of a sequence that most texts fit into, the share of texts that do, and their mean number of tokens."""
    some = rows[:MEASURED]
    found = (encode_whole if labelled else encode)(some, base.tokenizer, sys.maxsize).lengths
    wanted = int(np.quantile(found, FITTING, method="higher"))
    length = min(base.longest, max(SHORTEST, 1 << (wanted - 1).bit_length()))
    return length, float((found <= length).mean()), float(np.minimum(found, length).mean())
