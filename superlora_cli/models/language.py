"""Language models of the library transformers as bases: `transformers:FOLDER`, `transformers:NAME@REVISION` of the hub,
or a shipped one.

Weights are read as safetensors only, and no code of a repository is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superlora_cli.errors import SuperLoraError, UsageError
from superlora_cli.models.arguments import refuse_others, with_dtype
from superlora_cli.models.base import Base
from superlora_cli.models.conv1d import as_linear
from superlora_cli.models.embedded import ASSETS, LANGUAGE
from superlora_cli.models.hub import cache_folder, cache_if_unreachable
from superlora_cli.models.loading import load_weights
from superlora_cli.models.quantising import as_shapes, check_section, settings, settled

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import ModelSection

PREFIX = "transformers:"
EXTRA = "pip install 'superlora-cli[language]'"
ARGUMENTS = ("dtype", "attn_implementation")  # of `from_pretrained`
POOLER = "pooler"  # of a base: only classifiers use it, so that it belongs to their head
LONGEST = 1024  # tokens of a text, if neither recipe nor model asks for fewer


@dataclass(frozen=True, kw_only=True)
class LanguageBase(Base):
    """A causal language model, or a classifier of texts with a new head.

    Attributes:
        place: folder, or name on the hub.
        revision: on the hub.
    """

    place: str
    revision: str | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer.

        Raises:
            UsageError: it has none, or it cannot be loaded.
        """
        from transformers import AutoTokenizer

        with _one_line(self.place, "the tokenizer"):
            return AutoTokenizer.from_pretrained(self.place, revision=self.revision, trust_remote_code=False)

    @property
    def peft_task(self) -> str:
        return "SEQ_CLS" if self.trained_head else "CAUSAL_LM"

    @property
    def positions(self) -> int | None:
        """The number of tokens that the model is made for, if it says so."""
        config: Any = self.model.config
        known = getattr(config.get_text_config(), "max_position_embeddings", None)
        offset = max((1 + table.padding_idx for name, table in self.model.named_modules()
                      if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None),
                     default=0)  # fmt: skip  # RoBERTa counts from there
        return known - offset if known else None

    @property
    def longest(self) -> int:
        """The number of tokens that a text may have, unless a recipe says otherwise."""
        return min(LONGEST, self.positions or LONGEST)


def is_language(name: str) -> bool:
    """Whether `model.name` means a language model.

    >>> is_language("transformers:gpt2"), is_language("gpt2")
    (True, False)
    """
    return name.startswith(PREFIX) or name in LANGUAGE


def build_language(section: ModelSection, *, classes: int | None, weights: bool = True) -> LanguageBase:
    """Build the model that a recipe's `model` section names; arguments as for `models.build.build`.

    Raises:
        UsageError: the extra is missing, there is no such model, or it cannot be loaded.
    """
    if find_spec("transformers") is None:
        raise UsageError("language models need the library transformers", where=section.name, hint=EXTRA)
    import transformers

    from superlora_cli.models.pipelines import hush

    hush()
    refuse_others(section.name, section.kwargs, ARGUMENTS)
    check_section(section)
    place, revision = _place(section.name)
    new = section.head == "new"
    maker: Any = transformers.AutoModelForSequenceClassification if new else transformers.AutoModelForCausalLM
    options, how = {"trust_remote_code": False}, with_dtype(section.kwargs, "dtype")
    missing: set[str] = set()
    with _one_line(place, f"model.name={section.name}"):
        config = transformers.AutoConfig.from_pretrained(place, revision=revision, **options)
        if new:
            if classes is None:
                raise UsageError("the number of classes is unknown", where="data.num_classes", hint="set it")
            config.num_labels = classes
        stored = config.dtype or torch.float32
        if weights and section.pretrained and section.checkpoint is None:
            if section.quantize:
                how |= settings(section.quantize, transformers, how.get("dtype", stored))
            model, read = maker.from_pretrained(
                place, revision=revision, config=config, use_safetensors=True, output_loading_info=True,
                **options, **({"dtype": "auto"} | how),
            )  # fmt: skip
            missing = read["missing_keys"]
        else:
            with torch.device("cpu" if weights else "meta"):
                model = maker.from_config(config, **options, **({"dtype": stored} | how))
    if new and model.config.pad_token_id is None:  # by which the model finds the last token of a text
        ends = model.config.eos_token_id
        model.config.pad_token_id = (ends[0] if isinstance(ends, list) else ends) or 0
    as_linear(model)
    if section.quantize:
        (settled if weights else as_shapes)(model, section.quantize)
    if weights and section.checkpoint:
        load_weights(model, Path(section.checkpoint))
    trained = new_parameters(model) if new else ()
    if new and not trained:
        raise UsageError(f"{place} has no place for a new head", where="model.head", hint="head: frozen")
    if without := sorted({name for name, _ in model.named_parameters()} & missing - {*trained}):
        hint = "a model of this kind, or of labelled texts with model.head: new"
        raise UsageError(f"the files lack {len(without):,} weights, such as {without[0]}", where=place, hint=hint)
    arguments: dict[str, Any] = {"pretrained_model_name_or_path": place}
    arguments |= {"revision": revision} if revision else {}
    arguments |= {"num_labels": classes} if new else {}
    return LanguageBase(
        model, f"transformers.{maker.__name__}.from_pretrained", arguments, trained_head=trained, task="language",
        by_timm=False, place=place, revision=revision,
    )  # fmt: skip


def new_parameters(model: Any) -> tuple[str, ...]:
    """Names of the parameters that only classifying needs: outside the base, and in its pooler."""
    base = model.base_model
    if base is model:
        return ()
    known = {parameter for name, parameter in base.named_parameters() if name.partition(".")[0] != POOLER}
    return tuple(name for name, parameter in model.named_parameters() if parameter not in known)


def _place(name: str) -> tuple[str, str | None]:
    """The folder or the name on the hub, and the revision there."""
    if name in LANGUAGE:
        return str(ASSETS / name), None
    name = name.removeprefix(PREFIX)
    if Path(name).is_dir():
        return name, None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        hint = f"{PREFIX}FOLDER is a model on this machine"
        raise UsageError("no such folder", where=f"model.name={PREFIX}{name}", hint=hint)
    repository, _, revision = name.partition("@")
    return repository, revision or None


@contextmanager
def _one_line(place: str, where: str) -> Iterator[None]:
    """Inside, any error of the library, the network or a damaged file becomes one line."""
    local = Path(place).is_dir()
    with nullcontext(True) if local else cache_if_unreachable() as answers:
        try:
            yield
        except SuperLoraError:
            raise
        except Exception as error:
            cause = str(error).strip().partition("\n")[0] or type(error).__name__
            if local:
                hint = "give a folder written by save_pretrained, with safetensors"
                raise UsageError(f"cannot be loaded: {cause}", where=place, hint=hint) from None
            if not answers:
                cause = f"not in the cache {cache_folder()}, and the hub cannot be reached"
            raise UsageError(cause, where=where, hint=f"{PREFIX}FOLDER is a model on this machine") from None
