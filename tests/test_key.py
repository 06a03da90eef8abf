"""What the results' key depends on, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.config import GenerateConfig
from tasks.key import results_key


def key(identity: str = "commit", **sections: dict[str, Any]) -> str:
    base: dict[str, Any] = {"model": {"source": "m"}, "dataset": {"path": "d"}, "output": {"path": "o"}}
    for name, fields in sections.items():
        base[name] = base.get(name, {}) | fields
    return results_key(GenerateConfig(**base), identity)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("sampling", {"temperature": 0.5}),
        ("sampling", {"n": 2}),
        ("sampling", {"seed": 1}),
        ("sampling", {"stop": ["</answer>"]}),
        ("prompt", {"system": "x"}),
        ("prompt", {"enable_thinking": True}),
        ("engine", {"dtype": "float32"}),
        ("engine", {"max_model_len": 99}),
        ("engine", {"yarn": {"factor": 2.0, "original_max_position_embeddings": 8}}),
        ("dataset", {"prompt_field": "question"}),
        ("output", {"keep_fields": ["topic"]}),
    ],
)
def test_what_changes_the_rows_changes_the_key(section: str, fields: dict[str, Any]) -> None:
    assert key(**{section: fields}) != key()


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("engine", {"max_num_seqs": 4}),
        ("engine", {"replicas": 2, "gpu_memory_utilization": 0.5, "stall_timeout": 9.0}),
        ("dataset", {"path": "elsewhere", "shard_size": 7, "limit": 3}),
        ("output", {"path": "elsewhere", "chunk_seconds": 1.0}),
        ("model", {"source": "elsewhere"}),
        ("validation", {"max_error_rate": 0.5}),
    ],
)
def test_what_does_not_keeps_the_key(section: str, fields: dict[str, Any]) -> None:
    assert key(**{section: fields}) == key()


def test_the_model_is_part_of_the_key() -> None:
    assert key("another commit") != key()
