"""The form of a run: the schema that Prefect's UI makes it of. (tests/ui opens the form itself.)"""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows.generate import generate
from tasks.config import GenerateConfig

SCHEMA: dict[str, Any] = parameter_schema(generate).model_dump()
FIELDS = [(section, name, field) for section, schema in SCHEMA["definitions"].items()
          for name, field in schema["properties"].items()]  # fmt: skip


def test_sections_come_in_the_order_a_person_fills_them_in() -> None:
    assert list(SCHEMA["properties"]) == ["model", "dataset", "prompt", "sampling", "output", "validation", "engine"]
    assert set(SCHEMA["properties"]) == set(GenerateConfig.model_fields)
    assert list(_section("EngineConfig"))[-1] == "extra"


@pytest.mark.parametrize(("section", "name", "field"), FIELDS)
def test_each_field_is_told_in_words(section: str, name: str, field: dict[str, Any]) -> None:
    assert "_" not in field["title"]
    assert len(field["title"]) <= 32
    assert field["description"]
    assert "`" not in field["description"]  # the form shows them as they are


def test_a_field_that_may_be_empty_is_a_plain_input() -> None:
    limit = _section("DatasetConfig")["limit"]
    assert (limit["type"], limit["minimum"]) == ("integer", 1)
    assert "anyOf" not in limit
    assert "default" not in limit
    assert _section("PromptConfig")["reasoning_effort"]["enum"] == ["low", "medium", "high"]


def test_switches_and_nested_sections_keep_their_none() -> None:
    assert {"type": "null"} in _section("PromptConfig")["enable_thinking"]["anyOf"]
    assert {"type": "null"} in _section("SamplingConfig")["structured"]["anyOf"]


def test_ranges_are_in_the_words_and_in_the_schema() -> None:
    n = _section("SamplingConfig")["n"]
    assert n["description"].endswith("From 1 to 4096.")
    assert (n["minimum"], n["maximum"], n["default"]) == (1, 4096, 1)


def test_none_is_still_a_value_for_the_config() -> None:
    config = GenerateConfig.model_validate(
        {"model": {"source": "m"}, "dataset": {"path": "d", "limit": None}, "output": {"path": "o"}}
    )
    assert config.dataset.limit is None


def _section(name: str) -> dict[str, Any]:
    fields: dict[str, Any] = SCHEMA["definitions"][name]["properties"]
    return fields
