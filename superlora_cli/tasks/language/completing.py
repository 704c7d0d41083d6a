"""A model continues prompts, many at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from superlora_cli.errors import UsageError

# What a model's own configuration may set, and would make tokens other than the likeliest.
PLAIN = {"top_k": None, "top_p": None, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1,
         "suppress_tokens": None, "begin_suppress_tokens": None}  # fmt: skip


class How(NamedTuple):
    """How prompts are continued.

    Attributes:
        max_tokens: after so many tokens a completion ends in any case.
        stop: texts at which it ends; they are not part of it.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn.
    """

    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    temperature: float = 0.0


class Completion(NamedTuple):
    """What follows a prompt: its text, and its number of tokens."""

    text: str
    tokens: int


@torch.no_grad()
def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    how: How,
    *,
    batch_size: int,
    device: torch.device,
    positions: int | None,
    together: bool = False,
    streamer: Any = None,
) -> Iterator[tuple[int, Completion]]:
    """Completions of prompts, with the prompts' numbers, in batches of prompts of similar lengths.

    Args:
        model: in evaluation mode.
        positions: the number of tokens that the model is made for, at which a completion ends, too.
        together: whether other processes hold parts of the model, and so take as many steps.
        streamer: of transformers, is given the tokens of a single prompt as they are made.

    Raises:
        UsageError: a prompt leaves no room for a token.
    """
    for prompt in prompts:
        if positions is not None and len(prompt) >= positions:
            text = tokenizer.decode(prompt)[:40]
            message = f"{text!r} … has {len(prompt):,} tokens, and the model {positions:,} positions"
            raise UsageError(message, where="--prompt", hint=f"a prompt of at most {positions - 1:,} tokens")
    limits = [min(how.max_tokens, (positions or sys.maxsize) - len(prompt)) for prompt in prompts]
    ends = _ends(model, tokenizer)
    pad = next(iter([*filter(lambda each: each is not None, [tokenizer.pad_token_id]), *ends]), 0)
    drawn = {"do_sample": True, "temperature": how.temperature} if how.temperature else {"do_sample": False}
    stops = {"stop_strings": list(how.stop), "tokenizer": tokenizer} if how.stop else {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    groups = [order] if together else [list(own) for _, own in groupby(order, key=limits.__getitem__)]
    for batch in (group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)):
        begun, mask = padded([prompts[index] for index in batch], pad, device)
        made = model.generate(
            begun, attention_mask=mask, max_new_tokens=min(limits[index] for index in batch), pad_token_id=pad,
            eos_token_id=ends or None, synced_gpus=together, streamer=streamer, **PLAIN, **(drawn | stops),
        )  # fmt: skip
        for index, tokens in zip(batch, made[:, begun.shape[1] :].tolist(), strict=True):
            yield index, _read(tokens, ends, tokenizer, how.stop)


def padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts filled up at their beginnings, and which tokens are theirs."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(own)) + list(own) for own in prompts])
    mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in prompts])
    return ids.to(device), mask.to(device)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text."""
    known = getattr(model.generation_config, "eos_token_id", None)
    listed = known if isinstance(known, list) else [known]
    return sorted({each for each in [*listed, tokenizer.eos_token_id] if each is not None})


def _read(tokens: list[int], ends: list[int], tokenizer: Any, stop: Sequence[str]) -> Completion:
    """The text of new tokens up to the first end or stop."""
    count = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    text: str = tokenizer.decode(tokens[:count], skip_special_tokens=True)
    return Completion(stopped(text, stop), count)


def stopped(text: str, stop: Sequence[str]) -> str:
    """A text up to the first stop."""
    return text[: min((text.index(word) for word in stop if word in text), default=len(text))]
