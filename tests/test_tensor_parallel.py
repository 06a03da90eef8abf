"""One replica over several vLLM workers (here on the CPU's cores), and one of them killed in the middle."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import orjson
import pytest
import yaml

from tests.flow_runs import made, rows_of, start_flow, wait_until
from tests.processes import engines_of

pytestmark = pytest.mark.engine

RECORDS, N = 24, 2


def test_a_tensor_parallel_replica_goes_on_after_a_worker_died(
    tmp_path: Path, tiny_qwen3: Path, flow_environment: dict[str, str]
) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(orjson.dumps({"prompt": f"Q {i}"}) for i in range(RECORDS)))
    output = tmp_path / "out"
    sections = {
        "model": {"source": str(tiny_qwen3)},
        "dataset": {"path": str(tmp_path / "data.jsonl"), "shard_size": 8},
        "sampling": {"n": N, "max_tokens": 16, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "ignore_eos": True},
        "engine": {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "tensor_parallel_size": 2},
        "output": {"path": str(output), "chunk_seconds": 0.2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    flow = start_flow(flow_environment, "--config", str(tmp_path / "run.yaml"))
    wait_until(lambda: made(output) or flow.poll() is not None, 240, every=0.02)
    workers = {rank: pid for pid in engines_of(output) if (rank := _rank(pid)) is not None}
    assert sorted(workers) == [0, 1]
    kept = made(output)
    os.kill(workers[1], signal.SIGKILL)
    _, said = flow.communicate(timeout=300)
    assert flow.returncode == 0, said
    rows = {(row["original_index"], row["sample_id"]): row for row in rows_of(output / "data.jsonl")}
    assert list(rows) == [(i, s) for i in range(RECORDS) for s in range(N)]
    assert kept.items() <= rows.items()
    assert {row["completion_tokens"] for row in rows.values()} == {16}
    (engine,) = json.loads((output / "manifest.json").read_text())["this_run"]["engines"]
    assert engine["restarts"] == 1
    wait_until(lambda: not engines_of(output), 10)


def _rank(pid: int) -> int | None:
    """Of a tensor-parallel worker of vLLM, by its title."""
    title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    return int(title[-1]) if title.startswith("VLLM::Worker_TP") else None
