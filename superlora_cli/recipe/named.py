"""Types for recipe keys whose value is a name in a table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError


def named(table: Collection[str]) -> Any:
    """A type for text that must be in `table`: checked when a recipe is read, and listed in the JSON Schema."""

    def known(name: str) -> str:
        if name not in table:
            raise PydanticCustomError("enum", "not in the table")
        return name

    return Annotated[str, AfterValidator(known), WithJsonSchema({"enum": list(table), "type": "string"})]
