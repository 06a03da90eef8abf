"""Settings of servers as engines that are refused before anything is asked of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.config import EngineConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "openai"}, "base_urls"),
        ({"kind": "openai", "base_urls": ["http://host/v1?api-key=x"]}, "api_key_env"),
        ({"kind": "openai", "base_urls": ["host:8000"]}, "http"),
        ({"kind": "openai", "base_urls": ["http://h/v1"], "tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"base_urls": ["http://h/v1"]}, "openai"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineConfig.model_validate(fields)
