"""What the flow costs a shard: engines that answer at once, 10 to 1,000 shards, and a rerun where all are finished.

Everything else is real: Prefect with a server of its own for each run, split, pool, chunks, merge, validation, report.
A shard's cost is the time of the flow without the engine's start, divided by the number of shards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.harness import Figures, Result, python

RECORDS_A_SHARD = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--no-warm-up", action="store_true", help="the first run makes the server's database, too")


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PREFECT_HOME": f"{folder}/prefect"}
        environment.pop("PREFECT_API_URL", None)
        if not options.no_warm_up:
            run_flow(Path(folder, "warm-up"), 1, environment)  # the server's empty database is made once
        rows = [run_flow(Path(folder, str(shards)), shards, environment) for shards in options.shards]
        rerun = run_flow(Path(folder, str(options.shards[-1])), options.shards[-1], environment)
    rows.append({**rerun, "run": f"{options.shards[-1]:,} shards again"})
    most, few = rows[-2], rows[-3] if len(rows) > 2 else rows[-2]
    figures = {
        f"ms a shard, of {options.shards[-1]:,}": most["ms a shard"],
        "ms a shard, of the most shards / of the next fewer": round(most["ms a shard"] / few["ms a shard"], 2),
        f"ms a shard, {options.shards[-1]:,} finished ones again": rerun["ms a shard"],
    }
    return Result(rows, figures, dict(zip(list(figures)[:2], ["<= 50", "<= 1: not growing"], strict=True)))


def run_flow(folder: Path, shards: int, environment: dict[str, str]) -> Figures:
    """One run of the command line on fake engines; in a folder where it ran before, everything is finished."""
    folder.mkdir(exist_ok=True)
    dataset = folder / "data.jsonl"
    with dataset.open("w", encoding="ascii") as file:
        file.writelines(f'{{"prompt": "question {number}"}}\n' for number in range(shards * RECORDS_A_SHARD))
    flags = {"model.source": _model(folder), "dataset.path": dataset, "output.path": folder / "out"}
    command = python(
        "tests.fake_flow", *(f"--{n}={v}" for n, v in flags.items()), f"--dataset.shard_size={RECORDS_A_SHARD}"
    )
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"the flow failed:\n{done.stderr[-3000:]}")
    run = json.loads((folder / "out/manifest.json").read_text(encoding="utf-8"))["this_run"]
    engine = run["engine_facts"].get("start_seconds", 0.0)
    row = {
        "run": f"{shards:,} shards",
        "ms a shard": round(1000 * (run["seconds"] - engine) / shards, 1),
        "flow s": round(run["seconds"], 2),
        "of it engine start s": engine,
        "command s": round(seconds, 2),
    }
    print(row, file=sys.stderr, flush=True)  # the whole takes minutes
    return row


def _model(folder: Path) -> Path:
    """A folder that passes for a model: the fake engine loads nothing."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return model
