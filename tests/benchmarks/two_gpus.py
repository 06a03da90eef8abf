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
from statistics import median

from tests.benchmarks.harness import Figures, Result
from tests.benchmarks.throughput import our_flow, ratio
from tests.benchmarks.workloads import WORKLOADS, Workload
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
COMPARED = [("two replicas", "one replica"), ("two replicas on Ray", "two replicas")]
ASKED = {"two replicas / one replica": ">= 1.95"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[side for side in SIDES if side not in RAY_NODES])
    parser.add_argument("--records", type=int, help="default: the workload's")
    parser.add_argument("--rounds", type=int, default=1, help="of all sides in turn; figures are medians")


def measure(options: argparse.Namespace) -> Result:
    workload = WORKLOADS["gpu-replicas"]
    records = options.records or workload.records
    runs: dict[str, list[Figures]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as folder:
        dataset = workload.write(Path(folder), records)
        for number in range(options.rounds):
            for place, (side, made) in enumerate(runs.items()):
                out = Path(folder, f"out-{number}-{place}")
                made.append(_run(side, workload, dataset, -(-records // SHARDS), out))
                print(json.dumps({"side": side, **made[-1]}), file=sys.stderr, flush=True)
    figures = {
        f"{side} / {other}": ratio(runs, side, other) for side, other in COMPARED if {side, other} <= set(options.sides)
    }
    notes = [f"{workload.about}; {records} records × {workload.n} samples, rounds: {options.rounds}"]
    return Result([_row(side, made) for side, made in runs.items()], figures, ASKED, notes)


def _run(side: str, workload: Workload, dataset: Path, shard_size: int, out: Path) -> Figures:
    if "killed" in side:
        threading.Thread(target=_kill_one, args=(out,), daemon=True).start()
    with ray_nodes(RAY_NODES.get(side, [])) as engine:
        model = str(cached(workload.model))
        made = our_flow(workload, model, dataset, workload.n, shard_size, out, **SIDES[side], **engine)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    restarts = sum(engine["restarts"] for engine in manifest["this_run"]["engines"])
    return made | {"samples": manifest["samples"], "errors": manifest["errors"], "restarts": restarts}


def _row(side: str, runs: list[Figures]) -> Figures:
    return {
        "side": side,
        "tokens/s": round(median(made["tokens"] / made["seconds"] for made in runs), 1),
        "engine ready after s": round(median(made["start"] for made in runs), 1),
        "GPU busy": " ".join(f"{busy:.2f}" for busy in runs[-1].get("gpu busy", []) if busy is not None),
        **{name: runs[-1][name] for name in ("samples", "errors", "restarts")},
    }


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
