from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.config import ModelConfig
from tasks.downloads.selection import needed_files, require_complete, require_names
from tasks.errors import RunError
from tests.hub import tiny_model

NAMES = list(tiny_model().files)
NEEDED = [
    "chat_template.jinja",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def needed(names: list[str], **fields: object) -> list[str]:
    return needed_files(names, ModelConfig.model_validate({"source": "org/x", **fields}))


def test_takes_what_vllm_reads_and_no_other_format() -> None:
    assert needed(NAMES) == NEEDED


def test_takes_code_only_where_it_may_run() -> None:
    names = [*NAMES, "own/helpers.py"]
    assert sorted(set(needed(names, trust_remote_code=True)) - set(NEEDED)) == ["modeling_own.py", "own/helpers.py"]


def test_takes_pytorch_weights_only_where_there_are_no_others() -> None:
    names = ["config.json", "pytorch_model.bin", "training_args.bin", "optimizer.pt"]
    assert needed(names) == ["config.json", "pytorch_model.bin"]
    assert needed([*names, "model.safetensors"]) == ["config.json", "model.safetensors"]


def test_takes_consolidated_weights_where_they_are_the_only_ones() -> None:
    names = ["config.json", "consolidated.safetensors", "params.json", "tekken.json"]
    assert needed(names) == sorted(names)


def test_include_replaces_the_choice_and_exclude_narrows_it() -> None:
    assert needed(NAMES, include=["*.json", "original/*"], exclude=["tokenizer*", "*.pth"]) == [
        "config.json",
        "model.safetensors.index.json",
        "original/model.safetensors",
    ]
    assert needed(NAMES, exclude=["*-00002-*"]) == [n for n in NEEDED if "-00002-" not in n]


def test_dummy_weights_need_no_weights() -> None:
    config = ModelConfig(source="org/x")
    assert [n for n in needed_files(NAMES, config, dummy_weights=True) if n.endswith(".safetensors")] == []


@pytest.mark.parametrize(("names", "lacks"), [(["model.safetensors"], "config.json"), (["config.json"], "weights")])
def test_names_what_a_model_lacks(names: list[str], lacks: str) -> None:
    with pytest.raises(RunError, match=f"model.source: org/x has no {lacks}"):
        require_names(names, "org/x", dummy_weights=False)


def test_names_shards_that_the_index_has_and_the_folder_lacks(tmp_path: Path) -> None:
    shards = {f"layer.{i}": f"model-{i}.safetensors" for i in range(3)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in ("config.json", "model-0.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunError, match=r"model.source: here is incomplete: model-1.safetensors and 1 more, .*missing"):
        require_complete(tmp_path, "here", dummy_weights=False)
    require_complete(tmp_path, "here", dummy_weights=True)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors.index.json", "model.safetensors"):
        (tmp_path / name).write_text("{")
    with pytest.raises(RunError, match=r"model.safetensors.index.json is damaged"):
        require_complete(tmp_path, "here", dummy_weights=False)
