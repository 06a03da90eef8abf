"""The flow and its real engine killed, stopped and told to end. Nothing is lost, nothing is made twice, nothing stays.

Samples are not seeded: one that was made again would have another text.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.conftest import RunFlow
from tests.flow_runs import Place, listens_to, made, place_of, rows_of, start_flow, wait_until
from tests.processes import engines_of

pytestmark = pytest.mark.engine

N, RECORDS, SHARDS = 2, 40, 8
PATIENCE = 240.0
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> str:
    """A run config: some seconds of work, a chunk every 0.2 s."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "data.jsonl").write_bytes(b"".join(orjson.dumps({"prompt": f"Q {i}"}) + b"\n" for i in range(RECORDS)))
    config = {
        "model": {"source": str(tiny_qwen3)},
        "dataset": {"path": str(folder / "data.jsonl"), "shard_size": RECORDS // SHARDS},
        "sampling": {"n": N, "max_tokens": 40, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "ignore_eos": True},
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "stall_timeout": 12},
        "output": {"path": "set by each test", "chunk_seconds": 0.2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "run.yaml")


def test_the_flow_killed_at_five_moments(
    config: str, flow_environment: dict[str, str], run_flow: RunFlow, tmp_path: Path
) -> None:
    """kill -9, and the same command again: engines are gone within seconds, what stood in chunks is taken as it is."""
    output = tmp_path / "out"
    arguments = ["--config", config, "--output.path", str(output)]
    kept: dict[Place, Any] = {}
    for moment, reached in moments(output).items():
        process = start_flow(flow_environment, *arguments)
        wait_until(lambda now=reached, flow=process: now() or flow.poll() is not None, PATIENCE, every=0.005)  # type: ignore[misc]
        assert process.poll() is None, f"ended before {moment}"
        process.kill()
        process.communicate()
        wait_until(lambda: not engines_of(output), 10)
        now = made(output)
        assert kept.items() <= now.items(), f"lost by a kill at {moment}"
        kept = now
    assert len(kept) == RECORDS * N
    starts = engine_starts(output)
    assert run_flow(*arguments).returncode == 0
    assert engine_starts(output) == starts, "all was made: no engine was needed"
    complete(output, kept)
    assert not list(output.rglob(".tmp-*"))


def engine_starts(output: Path) -> int:
    return (output / "logs/run.log").read_text().count("engine 0 is starting")


def moments(output: Path) -> dict[str, Callable[[], bool]]:
    """When the flow is killed: while it prepares, starts its engine, begins, works, and merges."""

    def merging() -> bool:
        finished = len(list(output.glob("shards/*/*.manifest.json"))) == SHARDS
        return finished and bool(list(output.glob(".tmp-*")) or (output / "data.jsonl").exists())

    return {
        "preparing": lambda: (output / "logs/run.log").exists(),
        "engine start": lambda: bool(engines_of(output)),
        "first chunk": lambda: bool(made(output)),
        "the middle": lambda: len(made(output)) >= RECORDS * N // 2,
        "merging": merging,
    }


def test_the_engine_killed_then_stopped(config: str, flow_environment: dict[str, str], tmp_path: Path) -> None:
    """kill -9 of the engine loses only what was in no chunk; SIGSTOP is a hang, met with gentler settings."""
    output = tmp_path / "out"
    flow = start_flow(flow_environment, "--config", config, "--output.path", str(output))
    try:
        wait_until(lambda: len(made(output)) >= 10, PATIENCE)
        assert {address for pid in engines_of(output) for address in listens_to(pid)} <= LOOPBACK
        os.kill(engines_of(output)[0], signal.SIGKILL)
        kept = made(output)
        wait_until(lambda: len(made(output)) >= len(kept) + 10, PATIENCE)
        os.killpg(engines_of(output)[0], signal.SIGSTOP)
        kept = made(output)
        _, stderr = flow.communicate(timeout=PATIENCE)
    finally:
        flow.kill()
    assert flow.returncode == 0, stderr
    complete(output, kept)
    run = json.loads((output / "manifest.json").read_text())["this_run"]
    killed, stopped = run["steps"]
    assert "killed by signal 9" in killed
    assert "made no token for 12 s" in stopped
    assert "max_num_seqs 4" in stopped
    assert run["engines"][0]["restarts"] == 2
    assert "max_num_seqs 4" in (output / "logs/run.log").read_text()


@pytest.mark.parametrize("moment", ["imports", "engine start", "generating"])
def test_a_flow_that_is_told_to_end_ends_all(
    config: str, flow_environment: dict[str, str], tmp_path: Path, moment: str
) -> None:
    """Ctrl-C; that SIGTERM and a closed terminal are the same is in test_terminal.py."""
    output = tmp_path / "out"
    log = output / "logs/run.log"
    longer = ("--sampling.max_tokens", "400")
    flow = start_flow(flow_environment, "--config", config, "--output.path", str(output), *longer)
    wait_until(lambda: engines_of(output), PATIENCE)
    if moment == "generating":
        wait_until(lambda: made(output), PATIENCE)
    elif moment == "engine start":
        wait_until(lambda: log.exists() and "engine 0 is starting" in log.read_text(), PATIENCE)
    flow.send_signal(signal.SIGINT)
    _, stderr = flow.communicate(timeout=30)
    assert flow.returncode == 130
    assert "same command" in stderr
    assert "Traceback" not in stderr
    assert not engines_of(output)


def complete(output: Path, kept: dict[Place, Any]) -> None:
    """Every sample is there, once, and those kept are what they were."""
    rows = rows_of(output / "data.jsonl")
    assert [place_of(row) for row in rows] == [(i, s) for i in range(RECORDS) for s in range(N)]
    assert not (output / "errors.jsonl").read_bytes()
    by_place = {place_of(row): row for row in rows}
    assert [place for place, row in kept.items() if by_place[place]["predict"] != row["predict"]] == []
