"""The whole flow on a Ray cluster with the real engine: the same bytes as from engines of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.conftest import RunFlow
from tests.ray_cluster import TestCluster

pytestmark = pytest.mark.engine

RECORDS = 24


@pytest.fixture
def config(tmp_path: Path, tiny_qwen3: Path) -> Path:
    """A run config for the local pool."""
    lines = [orjson.dumps({"prompt": f"What is {i} + 1?", "label": str(i + 1)}) for i in range(RECORDS)]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
    sections: dict[str, Any] = {
        "model": {"source": str(tiny_qwen3)},
        "dataset": {"path": str(tmp_path / "data.jsonl"), "shard_size": 4},
        "sampling": {"n": 1, "temperature": 0.0, "max_tokens": 8},
        # One sequence at a time: the sums of a batch depend on what else is in it.
        "engine": {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 1, "replicas": 1},
        "output": {"path": str(tmp_path / "local")},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_ray_run_equals_a_local_one(
    config: Path, run_flow: RunFlow, ray_cluster: TestCluster, tmp_path: Path
) -> None:
    local = run_flow("--config", str(config))
    assert local.returncode == 0, local.stderr
    arguments = ["--engine.pool", "ray", "--engine.ray_address", ray_cluster.address, "--engine.replicas", "2"]
    arguments += ["--engine.ray_resources", '{"engine": 1}', "--output.path", str(tmp_path / "ray")]
    done = run_flow("--config", str(config), *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ray/data.jsonl").read_bytes() == (tmp_path / "local/data.jsonl").read_bytes()
    manifest = json.loads((tmp_path / "ray/manifest.json").read_text())
    assert manifest["samples"] == RECORDS
    assert manifest["config"]["engine"]["pool"] == "ray"
    assert sorted(path.name for path in (tmp_path / "ray/logs").glob("engine-*.log")) == [
        "engine-0.log",
        "engine-1.log",
    ]
    assert not list((tmp_path / "ray").glob(".nodes-*"))
