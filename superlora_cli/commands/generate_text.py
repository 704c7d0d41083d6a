"""Continue prompts, with a run of the task language, an adapter, or a shipped language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from superlora_cli.adapter.attach import settle
from superlora_cli.commands.generate import check_start, open_source
from superlora_cli.commands.prompts import read_prompts
from superlora_cli.errors import UsageError
from superlora_cli.files import check_output, json_text, write_atomic
from superlora_cli.models.language import LanguageBase
from superlora_cli.tasks.language.completing import Completion, How, complete
from superlora_cli.tasks.language.encoding import check_tokens, prompt_ids
from superlora_cli.tasks.language.pieces import requested
from superlora_cli.tasks.language.section import LanguageSection
from superlora_cli.tasks.language.task import tokenizer_of
from superlora_cli.training.processes import join


def generate_text(
    source: str,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    prompts: Sequence[str] = (),
    prompts_file: Path | None = None,
    chat: bool = False,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 16,
    force: bool = False,
    allow_mismatch: bool = False,
    as_it_comes: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """The completions of prompts; the adapter is merged into the base first.

    Args:
        source: a run folder, an adapter or model file, or the name of a shipped language model.
        out: a JSON file for the result.
        chat: prompts are a user's messages, in the model's chat template; so they are with a message of the `system`.
        max_tokens: of a completion; default: the recipe's `language.max_tokens`.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn with `seed`.
        force: overwrite `out`.
        as_it_comes: is given the text of a single prompt in pieces, as they are made.

    Returns:
        completions: prompt, text and number of tokens of each, in the order of the prompts.

    Raises:
        UsageError: a setting is wrong. MismatchError: the base is not the adapter's.
    """
    if out is not None:
        check_output(out, force=force)
    check_start(max_tokens=max_tokens, batch_size=batch_size)
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"{temperature:g} is not a temperature", where="--temperature", hint="0, or a positive number")
    asked = read_prompts(prompts, prompts_file)
    built, _ = open_source(source, overrides, allow_mismatch)
    base = built.base
    assert isinstance(base, LanguageBase)
    if base.trained_head:
        raise UsageError("a classifier of texts writes none", where=source, hint="superlora eval")
    settings = built.recipe.section(LanguageSection)
    tokenizer = tokenizer_of(settings, base)
    talk = chat or system is not None
    texts = [requested(prompt, system, tokenizer) if talk else prompt for prompt in asked]
    ids = [prompt_ids(text, tokenizer, talk=talk) for text in texts]
    if not all(ids):
        raise UsageError("a prompt is empty", where="--prompt", hint="the model needs something to continue")
    check_tokens(np.concatenate(ids), tokenizer, base.model)
    settle(base.model)
    processes = join(built.recipe.train)
    try:
        model = processes.place(base.model).eval()
        torch.manual_seed(seed)
        how = How(max_tokens or settings.max_tokens, tuple(settings.stop), temperature)
        streams = as_it_comes is not None and len(asked) == 1 and not settings.stop  # a stop is cut off afterwards
        streamer = _streamer(tokenizer, as_it_comes) if as_it_comes and streams else None
        found: dict[int, Completion] = {}
        with processes.autocast():
            found.update(complete(model, tokenizer, ids, how, batch_size=batch_size, device=processes.device,
                                  positions=base.positions, streamer=streamer))  # fmt: skip
    finally:
        processes.end()
    if as_it_comes and len(asked) == 1 and not streams:
        as_it_comes(found[0].text)
    completions = [{"prompt": prompt, **found[index]._asdict()} for index, prompt in enumerate(asked)]
    if out is not None:
        write_atomic(out, json_text({"completions": completions}), force=force)
    return {"completions": completions}


def _streamer(tokenizer: Any, tell: Callable[[str], object]) -> Any:
    """Passes on text as it is made, a word at a time."""
    from transformers import TextStreamer

    class Teller(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            tell(text)

    return Teller(tokenizer, skip_prompt=True, skip_special_tokens=True)
