"""The schema is complete: every knob, every key described, and fit for editors."""

from __future__ import annotations

import json

from superlora_cli.adapter.config import AdapterConfig
from superlora_cli.recipe.describe import json_schema, keys_table, markdown_table
from superlora_cli.recipe.schema import AdapterSection


def test_the_adapter_section_has_every_knob_and_no_default() -> None:
    knobs = {name for name in AdapterSection.model_fields if name not in ("method", "targets")}
    assert knobs == set(AdapterConfig.knobs())
    assert AdapterSection().knobs == {}


def test_every_key_is_described() -> None:
    table = {row.key: row for row in keys_table()}
    assert all(row.description and row.type != "anything" for row in table.values())
    assert table["model.name"].default == "required"
    assert table["adapter.targets"][1:3] == ("a non-empty list of text", "[q, v]")
    assert table["adapter.projection"].type.endswith("'sparse' or 'steepest'")
    assert len(markdown_table().splitlines()) == len(table) + 2


def test_the_json_schema_covers_the_top_level_and_forbids_the_rest() -> None:
    schema = json_schema()
    tasks = {"diffusion", "text-to-image", "autoencoder", "language"}
    sections = {"model", "data", "adapter", *tasks, "train", "eval", "output"}
    assert set(schema["properties"]) == {"task", "defaults", "seed"} | sections
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema
