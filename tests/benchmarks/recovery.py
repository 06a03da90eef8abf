"""How long a run takes to go on after a fault, and what is made again: real engines killed and stopped, poison.

`back after` is from the fault to the first new sample in a chunk: noticing it, the new engine's start (its own time is
beside it; minutes for large models), and a first chunk.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import yaml

from tests import models
from tests.benchmarks.harness import Figures, Result, apart
from tests.flow_runs import made, start_flow, wait_until
from tests.processes import engines_of

N, TOKENS, SEQS = 2, 40, 8
PATIENCE = 300.0
STALL, CHUNK = 10.0, 1.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=80, help="of each run with a real engine")
    parser.add_argument("--only", nargs="+", help="kill stop core worker flow poison")


def measure(options: argparse.Namespace) -> Result:
    faults: dict[str, Callable[[], Figures]] = {
        "kill": lambda: _in_a_run("kill -9 of the engine", options.records, _kill_engine),
        "stop": lambda: _in_a_run(f"engine hangs (stall_timeout {STALL:g} s)", options.records, _stop_engine),
        "core": lambda: _in_a_run("kill -9 of vLLM's core process", options.records, _kill_core, "1"),
        "worker": lambda: _in_a_run(
            "kill -9 of one of two tensor-parallel workers", options.records, _kill_worker, "1", tensor_parallel_size=2
        ),
        "flow": lambda: _flow_killed(options.records),
        "poison": lambda: apart(_poison),
    }
    rows = [measure_one() for name, measure_one in faults.items() if name in (options.only or faults)]
    figures = {f"restarts, {row['fault']}": row["restarts"] for row in rows if "10,000" in row["fault"]}
    return Result(rows, figures, dict.fromkeys(figures, "<= 12"), [_bound()])


def _bound() -> str:
    return (
        f"in flight at most {2 * SEQS} samples, a chunk every {CHUNK:g} s; a tiny model, whose engine starts in seconds"
    )


def _in_a_run(
    fault: str, records: int, strike: Callable[[Path], None], multiprocessing: str = "0", **engine: int
) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        flow = start_flow(_environment(multiprocessing), "--config", _config(Path(folder), records, **engine))
        try:
            wait_until(lambda: len(made(output)) >= records * N // 4, PATIENCE)
            strike(output)
            back = _until_more(output)
            _, stderr = flow.communicate(timeout=PATIENCE)
        finally:
            flow.kill()
        assert flow.returncode == 0, stderr
        run = json.loads((output / "manifest.json").read_text())["this_run"]
        again = run["generated_tokens"] / TOKENS - records * N
        return _row(fault, back, run, run["engines"][0]["restarts"], again)


def _row(fault: str, back: float, run: Figures, restarts: int, again: float) -> Figures:
    start = run["engine_facts"]["start_seconds"]
    return {
        "fault": fault,
        "back after s": back,
        "of it engine start s": start,
        "restarts": restarts,
        "samples made again": max(0, round(again)),
    }


def _kill_engine(output: Path) -> None:
    os.kill(engines_of(output)[0], signal.SIGKILL)


def _stop_engine(output: Path) -> None:
    os.killpg(engines_of(output)[0], signal.SIGSTOP)


def _kill_core(output: Path) -> None:
    _kill_titled(output, b"EngineCore")


def _kill_worker(output: Path) -> None:
    _kill_titled(output, b"Worker_TP1")


def _kill_titled(output: Path, title: bytes) -> None:
    """Kill the process of vLLM that calls itself so."""
    (found,) = [pid for pid in engines_of(output) if title in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(found, signal.SIGKILL)


def _flow_killed(records: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out")
        arguments = ["--config", _config(Path(folder), records)]
        flow = start_flow(_environment(), *arguments)
        wait_until(lambda: len(made(output)) >= records * N // 4, PATIENCE)
        flow.kill()
        struck = time.monotonic()
        wait_until(lambda: not engines_of(output), 30, every=0.02)
        gone = time.monotonic() - struck
        kept = len(made(output))
        flow = start_flow(_environment(), *arguments)
        back = _until_more(output)
        _, stderr = flow.communicate(timeout=PATIENCE)
        assert flow.returncode == 0, stderr
        run = json.loads((output / "manifest.json").read_text())["this_run"]
        again = run["generated_tokens"] / TOKENS - (records * N - kept)
        fault = f"kill -9 of the flow, same command again (engines gone after {gone:.1f} s)"
        return _row(fault, back, run, 0, again)


def _poison() -> Figures:
    from tests.pools import FakeRun

    prompts = [f"prompt {i}" for i in range(10_000)]
    seconds = []
    for text in (prompts[5003], "POISON"):
        prompts[5003] = text
        with tempfile.TemporaryDirectory() as folder:
            run = FakeRun.make(Path(folder), prompts, engine={"max_num_seqs": 256}, dataset={"shard_size": 1024})
            started = time.monotonic()
            run.run()
            seconds.append(time.monotonic() - started)
            restarts, errors = run.view.engines[0].restarts, len(run.rows(errors=True))
    assert errors == 1
    fault = "one record of 10,000 kills its engine, 512 in flight (fake engine)"
    return {"fault": fault, "back after s": round(seconds[1] - seconds[0], 1), "restarts": restarts}


def _until_more(output: Path) -> float:
    before, struck = len(made(output)), time.monotonic()
    wait_until(lambda: len(made(output)) > before, PATIENCE)
    return round(time.monotonic() - struck, 1)


def _environment(multiprocessing: str = "0") -> dict[str, str]:
    return {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing}


def _config(folder: Path, records: int, **engine: int) -> str:
    data = folder / "data.jsonl"
    data.write_bytes(b"".join(orjson.dumps({"prompt": f"Q {i}"}) + b"\n" for i in range(records)))
    config = {
        "model": {"source": str(models.cached(models.tiny_qwen3))},
        "dataset": {"path": str(data), "shard_size": 10},
        "sampling": {"n": N, "max_tokens": TOKENS, "temperature": 1.0, "top_k": -1, "ignore_eos": True},
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": SEQS, "stall_timeout": STALL, **engine},
        "output": {"path": str(folder / "out"), "chunk_seconds": CHUNK},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)
