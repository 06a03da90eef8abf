"""The config in vLLM's terms. What engines do with it is in test_families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.config import PromptConfig, SamplingConfig, YarnConfig
from tasks.engines.vllm_args import sampling_args, yarn_overrides
from tasks.prompts import require_fitting

MROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
GPT_OSS = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}
FILES: dict[str, dict[str, Any]] = {
    "qwen3": {"rope_scaling": None, "rope_theta": 1000000, "head_dim": 128},
    "qwen2_5_vl": {"rope_scaling": MROPE, "rope_theta": 1000000.0, "vision_config": {"model_type": "qwen2_5_vl"}},
    "gpt_oss": {"rope_scaling": GPT_OSS, "rope_theta": 150000},
}
"""What the hub's files of these families say of their position embeddings."""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen3", {"rope_parameters": YARN | {"rope_theta": 1000000}}),
        ("qwen2_5_vl", {"text_config": {"rope_parameters": YARN | {"rope_theta": 1e6, "mrope_section": [16, 24, 24]}}}),
        ("gpt_oss", {"rope_parameters": GPT_OSS | YARN | {"rope_theta": 150000}}),
    ],
)
def test_yarn_goes_where_the_model_looks_for_it(tmp_path: Path, family: str, expected: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family} | FILES[family]))
    overrides = yarn_overrides(str(tmp_path), YarnConfig(factor=4.0, original_max_position_embeddings=32768))
    inner = overrides.get("text_config", overrides)
    assert inner.pop("max_position_embeddings") == 131072
    assert overrides == expected


def test_next_to_no_temperature_is_none() -> None:
    """As Qwen2.5-VL's card has it; of several samples not, which vLLM would refuse."""
    for n, temperature in ((1, 0.0), (2, 1e-6)):
        assert sampling_args(SamplingConfig(n=n), {"temperature": 1e-6}, {})["temperature"] == temperature


def test_settings_that_do_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    (tmp_path / "generation_config.json").write_text('{"temperature": 1e-6}')
    prompt = PromptConfig(enable_thinking=False, max_pixels=1000, reasoning_effort="low")
    require_fitting(str(tmp_path), prompt, SamplingConfig(n=4))
    told = [record.getMessage().split(":")[0] for record in caplog.records]
    assert told == [
        "prompt.enable_thinking says nothing to this model's format (harmony)",
        "prompt.max_pixels says nothing to this model's format (harmony)",
        "sampling.temperature",
    ]
