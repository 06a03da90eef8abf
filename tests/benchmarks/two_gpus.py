"""Two GPUs: two replicas against one, one replica over both GPUs, and a replica killed in the middle."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.benchmarks.harness import Figures, Result
from tests.benchmarks.throughput import our_flow
from tests.benchmarks.workloads import WORKLOADS
from tests.models import cached

SHARDS = 48
SIDES: dict[str, Figures] = {
    "one replica": {"replicas": 1},
    "two replicas": {"replicas": 2},
    "one replica, tensor_parallel_size 2": {"tensor_parallel_size": 2},
    "two replicas, one killed": {"replicas": 2},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--records", type=int, help="default: the workload's")


def measure(options: argparse.Namespace) -> Result:
    workload = WORKLOADS["gpu-replicas"]
    records = options.records or workload.records
    rows: list[Figures] = []
    with tempfile.TemporaryDirectory() as folder:
        model, dataset = str(cached(workload.model)), workload.write(Path(folder), records)
        for number, side in enumerate(options.sides):
            out = Path(folder, f"out-{number}")
            if "killed" in side:
                threading.Thread(target=_kill_one, args=(out,), daemon=True).start()
            made = our_flow(workload, model, dataset, workload.n, -(-records // SHARDS), out, **SIDES[side])
            print(json.dumps({"side": side, **made}), file=sys.stderr, flush=True)
            manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
            rows.append(
                {
                    "side": side,
                    "tokens/s": round(made["tokens"] / made["seconds"], 1),
                    "engine ready after s": made["start"],
                    "GPU busy": " ".join(f"{busy:.2f}" for busy in made["gpu busy"] if busy is not None),
                    "samples": manifest["samples"],
                    "errors": manifest["errors"],
                    "restarts": sum(engine["restarts"] for engine in manifest["this_run"]["engines"]),
                }
            )
    speeds = {row["side"]: row["tokens/s"] for row in rows}
    figures = {}
    if {"one replica", "two replicas"} <= set(speeds):
        figures["two replicas / one"] = round(speeds["two replicas"] / speeds["one replica"], 3)
    return Result(rows, figures, {"two replicas / one": ">= 1.95"}, [f"{workload.about}; {records} records × 8"])


def _kill_one(out: Path) -> None:
    """kill -9 of the second engine once shards are finished."""
    while not any(out.glob("shards/*/*.manifest.json")):
        time.sleep(0.2)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "fd/2") == str(out / "logs/engine-1.log"):
                os.kill(int(process.name), signal.SIGKILL)
                return
        except OSError:
            continue
