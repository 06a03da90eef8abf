"""The ready run configs load, and hold the sampling settings of their models' cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.config import GenerateConfig

DEPLOYMENTS = Path(__file__).parent.parent / "deployments"

SAMPLING: dict[str, dict[str, Any]] = {
    "qwen3-8b": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0},
    "qwen2.5-vl-7b": {"temperature": 0.000001, "repetition_penalty": 1.05},
    "qwen2.5-vl-72b": {"temperature": 0.000001, "repetition_penalty": 1.05},
    "gpt-oss-20b": {"temperature": 1.0, "top_p": 1.0},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_config_loads_with_the_cards_settings(name: str) -> None:
    text = (DEPLOYMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    config = GenerateConfig.model_validate(yaml.safe_load(text))
    sampling = config.sampling.model_dump(exclude_unset=True)
    assert {key: sampling.get(key) for key in SAMPLING[name]} == SAMPLING[name]
    assert config.output.path == f"runs/{name}"
    assert config.engine.max_model_len is not None
    assert config.sampling.max_tokens is not None
    assert config.sampling.max_tokens < config.engine.max_model_len
