"""Two GPUs: two replicas against one, one replica over both GPUs, and a replica killed in the middle."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.harness import Figures, Result
from tests.benchmarks.throughput import our_flow
from tests.benchmarks.workloads import WORKLOADS
from tests.models import cached
from tests.processes import engines_of

SHARDS = 48
SIDES: dict[str, Figures] = {
    "one replica": {"replicas": 1},
    "two replicas": {"replicas": 2},
    "one replica, tensor_parallel_size 2": {"tensor_parallel_size": 2},
    "two replicas, one killed": {"replicas": 2},
    "two replicas on Ray": {"replicas": 2, "pool": "ray"},
    "one replica across two Ray nodes": {"replicas": 1, "tensor_parallel_size": 2, "pool": "ray"},
}
RAY_NODES = {"two replicas on Ray": ["0,1"], "one replica across two Ray nodes": ["0", "1"]}
"""The GPUs of each node of the cluster that is started for a side, all of it on this machine."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[side for side in SIDES if side not in RAY_NODES])
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
            with ray_nodes(RAY_NODES.get(side, [])) as engine:
                made = our_flow(
                    workload, model, dataset, workload.n, -(-records // SHARDS), out, **SIDES[side], **engine
                )
            print(json.dumps({"side": side, **made}), file=sys.stderr, flush=True)
            manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
            rows.append(
                {
                    "side": side,
                    "tokens/s": round(made["tokens"] / made["seconds"], 1),
                    "engine ready after s": made["start"],
                    "GPU busy": " ".join(f"{busy:.2f}" for busy in made.get("gpu busy", []) if busy is not None),
                    "samples": manifest["samples"],
                    "errors": manifest["errors"],
                    "restarts": sum(engine["restarts"] for engine in manifest["this_run"]["engines"]),
                }
            )
    speeds = {row["side"]: row["tokens/s"] for row in rows}
    figures = {}
    if {"one replica", "two replicas"} <= set(speeds):
        figures["two replicas / one"] = round(speeds["two replicas"] / speeds["one replica"], 3)
    if {"two replicas on Ray", "two replicas"} <= set(speeds):
        figures["two replicas on Ray / local"] = round(speeds["two replicas on Ray"] / speeds["two replicas"], 3)
    return Result(rows, figures, {"two replicas / one": ">= 1.95"}, [f"{workload.about}; {records} records × 8"])


@contextlib.contextmanager
def ray_nodes(gpus: list[str]) -> Iterator[Figures]:
    """A Ray cluster with a node for each group of this machine's GPUs; yields fields of the `engine` section."""
    if not gpus:
        yield {}
        return
    from ray.cluster_utils import Cluster

    nodes = [
        {"num_gpus": len(ids.split(",")), "num_cpus": 4, "env_vars": {"CUDA_VISIBLE_DEVICES": ids}} for ids in gpus
    ]
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **nodes[0]})
    try:
        for node in nodes[1:]:
            cluster.add_node(**node)
        yield {"ray_address": cluster.address}
    finally:
        cluster.shutdown()


def _kill_one(out: Path) -> None:
    """kill -9 of the second engine once shards are finished."""
    while not any(out.glob("shards/*/*.manifest.json")):
        time.sleep(0.2)
    os.kill(engines_of(out, "1")[0], signal.SIGKILL)
