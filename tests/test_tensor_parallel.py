"""One replica over two vLLM workers (here on the CPU's cores). `benchmarks recovery` kills one of them."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import yaml

from tests.conftest import RunFlow
from tests.flow_runs import rows_of, wait_until
from tests.processes import engines_of

pytestmark = pytest.mark.engine

RECORDS, N = 8, 2


def test_a_tensor_parallel_replica_makes_every_sample(tmp_path: Path, tiny_qwen3: Path, run_flow: RunFlow) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(orjson.dumps({"prompt": f"Q {i}"}) for i in range(RECORDS)))
    output = tmp_path / "out"
    sections = {
        "model": {"source": str(tiny_qwen3)},
        "dataset": {"path": str(tmp_path / "data.jsonl"), "shard_size": 4},
        "sampling": {"n": N, "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "ignore_eos": True},
        "engine": {"dtype": "float32", "max_model_len": 256, "tensor_parallel_size": 2},
        "output": {"path": str(output)},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    done = run_flow("--config", str(tmp_path / "run.yaml"))
    assert done.returncode == 0, done.stderr
    rows = rows_of(output / "data.jsonl")
    assert [(row["original_index"], row["sample_id"]) for row in rows] == [
        (i, s) for i in range(RECORDS) for s in range(N)
    ]
    assert {row["completion_tokens"] for row in rows} == {8}
    assert "Worker_TP1" in (output / "logs/engine-0.log").read_text()
    wait_until(lambda: not engines_of(output), 10)
