"""Language: a causal model learns texts, completions or conversations. Only this task needs a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from superlora_cli.errors import UsageError
from superlora_cli.tasks.task import Card, TaskKind

if TYPE_CHECKING:
    from superlora_cli.recipe.schema import Recipe, Section
    from superlora_cli.tasks.work import Work


class LanguageKind(TaskKind):
    """A model learns to continue texts."""

    elements = "texts"
    batched = "sequences"
    data_keys = ("columns",)
    augments = False
    taught = True
    card = Card('generate {place} --prompt "..."', "merged  # for transformers", "text-generation")
    generates = "texts"
    previews = "texts"
    has_classes = False
    head = "frozen"

    def section(self) -> type[Section]:
        from superlora_cli.tasks.language.section import LanguageSection

        return LanguageSection

    def trains_head(self, recipe: Recipe) -> bool:
        return recipe.model.head == "new"

    def split(self, recipe: Recipe) -> str:
        return "label" if self.trains_head(recipe) else "content"

    def check_classes(self, recipe: Recipe, count: int | None) -> None:
        if count == 1 and self.trains_head(recipe):
            message = f"the texts of '{recipe.data.name}' have one label, and nothing to tell it from"
            raise UsageError(message, where="data.name", hint="texts with several labels, or leave out model.head: new")

    def at_work(self, recipe: Recipe) -> type[Work]:
        from superlora_cli.tasks.language.answering import Answering
        from superlora_cli.tasks.language.choosing import Choosing
        from superlora_cli.tasks.language.labelling import Labelling
        from superlora_cli.tasks.language.section import LanguageSection
        from superlora_cli.tasks.language.task import Language

        if self.trains_head(recipe):
            return Labelling
        return {"loss": Language, "exact_match": Answering, "choices": Choosing}[recipe.section(LanguageSection).judge]
