"""The recipe section of the task `language`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from superlora_cli.recipe.schema import Section


class LanguageSection(Section):
    """Lengths of texts, and how answers are judged, of the task `language`."""

    length: int | None = Field(
        None,
        ge=2,
        description="Most tokens of a text; longer ones are cut off, or into several if all of a text is learned. "
        "Default: as many as the model takes, up to 1,024.",
    )
    pack: bool = Field(
        True,
        description="Put several texts into a sequence of `length` tokens; none attends to another. `false`: one text "
        "a sequence, in batches of similar lengths.",
    )
    judge: Literal["loss", "exact_match", "choices"] = Field(
        "loss",
        description="What selects the best step. `exact_match`: the share of prompts whose generated answer is the "
        "completion. `choices`: the share of questions whose right answer is the likeliest.",
    )
    max_tokens: int = Field(64, ge=1, description="Most tokens of an answer that is generated.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="Texts at which an answer that is generated ends; it always ends where the model ends it."
    )
    answer: str | None = Field(
        None,
        description="A regular expression for the part of an answer that is compared: the last match, or its first "
        "group if the pattern has one. Default: all of it.",
    )

    chat_template: str | None = Field(
        None,
        description="A Jinja template that writes conversations, or a file that holds one, for models without or in "
        "place of theirs. Runs record its text, and `merge` saves it with the tokenizer.",
    )

    @field_validator("chat_template")
    @classmethod
    def _reads(cls, template: str | None) -> str | None:
        if template is None or "{" in template:
            return template
        try:
            return Path(template).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{template}: {error.strerror}; a file, or a template with braces") from None
        except UnicodeDecodeError:
            raise ValueError(f"{template}: is not UTF-8") from None

    @field_validator("answer")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern
