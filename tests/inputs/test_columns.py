"""Which columns a run needs."""

from __future__ import annotations

from typing import Any

from tasks.config import GenerateConfig
from tasks.inputs.columns import needed_columns


def columns(**sections: Any) -> set[str]:
    own = {"model": {"source": "m"}, "dataset": {"path": "d"}, "output": {"path": "o"}}
    return set(needed_columns(GenerateConfig.model_validate(own | sections)))


def test_by_default_the_fields_that_conversations_are_made_of() -> None:
    default = {"messages", "prompt", "images", "videos", "id", "label", "answer", "tools", "conversation_start_date"}
    assert columns() == default


def test_what_the_config_names_is_needed() -> None:
    dataset = {"path": "d", "messages_field": "turns", "label_field": "gold"}
    found = columns(
        dataset=dataset,
        output={"path": "o", "keep_fields": ["source"]},
        sampling={"max_tokens_field": "budget"},
        prompt={"template": "{{ prompt }} {% for item in hints %}{{ item }}{% endfor %} {{ meta.level }}"},
    )
    assert {"turns", "gold", "source", "budget", "hints", "meta", "prompt"} <= found
    assert not {"messages", "label", "answer", "item"} & found
