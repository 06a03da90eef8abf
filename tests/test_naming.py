from __future__ import annotations

import pytest

from flows.naming import dataset_name, model_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("/models/deep/SmolLM2-135M-Instruct/", "SmolLM2-135M-Instruct"),
        ("s3://bucket/models/qwen/", "qwen"),
        ("m" * 80, "m" * 47 + "…"),
    ],
)
def test_models(source: str, name: str) -> None:
    assert model_name(source) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("deployments/demo.jsonl", "demo"),
        ("data/train.jsonl", "data/train"),
        ("s3://bucket/sets/math.jsonl.gz", "math"),
        ("hf://datasets/openai/gsm8k/main/train.parquet", "main/train"),
        ("/data/math/part-*.jsonl.zst", "math"),
        ("/data/images/", "images"),
        ("train.csv", "train"),
    ],
)
def test_datasets(path: str, name: str) -> None:
    assert dataset_name(path) == name
