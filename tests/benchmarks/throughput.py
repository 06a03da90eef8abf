"""Tokens a second of our flow, in few and many shards, against one `LLM.generate` call and the usual script.

Same prompts, output lengths, engine settings and machine; each side in a process of its own, one after the other;
engine start apart. The usual script takes 16 records a call and waits for the slowest of each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from tests.benchmarks.harness import Figures, Result
from tests.benchmarks.workloads import WORKLOADS, Workload
from tests.models import cached

ONE_CALL, USUAL = "one call", "usual script"
ASKED, ASKED_ON_GPU = {8: 0.98, 64: 0.95}, {8: 0.97, 32: 0.97}
"""Of one call, by the number of shards."""
MOST_WAITED = 0.05
"""The share of time that a GPU may wait for images."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
PLAIN_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
"""What vLLM's SamplingParams are by themselves, as the other sides have them: a run takes the model's own else."""
Runs = Mapping[str, Sequence[Figures]]


def add_options(parser: argparse.ArgumentParser) -> None:
    kinds = "; ".join(f"{name}: {workload.about}" for name, workload in WORKLOADS.items())
    parser.add_argument("--variant", choices=WORKLOADS, default="mixed", help=kinds)
    parser.add_argument("--records", type=int, help="default: the variant's")
    parser.add_argument("--n", type=int, help="samples a record; default: the variant's")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", help="folder of another model than the variant's")


def measure(options: argparse.Namespace) -> Result:
    workload = WORKLOADS[options.variant]
    records, n = options.records or workload.records, options.n or workload.n
    model = options.model or str(cached(workload.model))
    runs: dict[str, list[Figures]] = {name: [] for name in (ONE_CALL, *map(flow_name, options.shards), USUAL)}
    with tempfile.TemporaryDirectory() as folder:
        dataset = workload.write(Path(folder), records)
        for number in range(options.rounds):
            runs[ONE_CALL].append(_told(ONE_CALL, baseline("one_call", workload, model, dataset, n)))
            for shards in options.shards:
                out = Path(folder, f"out-{number}-{shards}")
                made = our_flow(workload, model, dataset, n, -(-records // shards), out)
                runs[flow_name(shards)].append(_told(flow_name(shards), made))
            runs[USUAL].append(_told(USUAL, baseline("usual_script", workload, model, dataset, n)))
    notes = [f"{workload.about}; {records} records × {n} samples"]
    return Result(rows_of(runs), *_figures(runs, options.shards, workload), notes)


def _told(side: str, made: Figures) -> Figures:
    """A side's figures, shown as soon as they are there: the whole may take long."""
    print(json.dumps({"side": side, **made}), file=sys.stderr, flush=True)
    return made


def flow_name(shards: int) -> str:
    """How our flow is called in tables."""
    return f"our flow, {shards} shard{'s' if shards > 1 else ''}"


def rows_of(runs: Runs) -> list[Figures]:
    """A row a side: the median of its rounds."""
    return [
        {
            "side": side,
            "tokens/s": round(median(run["tokens"] / run["seconds"] for run in done), 1),
            "of one call": ratio(runs, side, ONE_CALL),
            "tokens": done[0]["tokens"],
            "engine ready after s": round(median(run["start"] for run in done), 1),
            **({"GPU busy": done[0]["gpu busy"][0]} if "gpu busy" in done[0] else {}),
            **({"engine waited": waited} if (waited := _waited(done)) is not None else {}),
        }
        for side, done in runs.items()
    ]


def _waited(done: Sequence[Figures]) -> float | None:
    """The share of time in which the engine had nothing to compute, the median of the rounds."""
    if None in (made.get("idle", [None])[0] for made in done):
        return None
    return float(round(median(made["idle"][0] / made["seconds"] for made in done), 4))


def ratio(runs: Runs, side: str, other: str) -> float:
    """How many times as fast, the median over the rounds: what slows the machine for a while slows both."""
    speeds = {name: [run["tokens"] / run["seconds"] for run in runs[name]] for name in (side, other)}
    return float(round(median(a / b for a, b in zip(speeds[side], speeds[other], strict=True)), 3))


def _figures(runs: Runs, shards: Sequence[int], workload: Workload) -> tuple[Figures, dict[str, str]]:
    figures, asked = {}, {}
    wanted = ASKED_ON_GPU if workload.gpu else ASKED
    for count in shards:
        name = f"{flow_name(count)} / one call"
        figures[name] = ratio(runs, flow_name(count), ONE_CALL)
        if count in wanted:
            asked[name] = f">= {wanted[count]}"
    usual, eight = "our flow / usual script", flow_name(min(shards, key=lambda count: abs(count - 8)))
    figures[usual] = ratio(runs, eight, USUAL)
    asked[usual] = f">= {2.0 if workload.gpu else 1.8}"
    if workload.asked_speed:
        figures["our flow, tokens/s"] = round(median(run["tokens"] / run["seconds"] for run in runs[eight]), 1)
        asked["our flow, tokens/s"] = f">= {workload.asked_speed:,}"
    if workload.images and (waited := _waited(runs[eight])) is not None:
        figures["share of time the engine waited"] = waited
        if workload.gpu:
            asked["share of time the engine waited"] = f"<= {MOST_WAITED}"
    return figures, asked


def baseline(side: str, workload: Workload, model: str, dataset: Path, n: int) -> Figures:
    """A side of `_baseline.py`."""
    usual = side == "usual_script"
    spec = {
        "side": side,
        "model": model,
        "dataset": str(dataset),
        "system": workload.system,
        "n": n,
        "records": workload.usual_records if usual else None,
        "engine": {**workload.engine, **workload.extra, **(workload.usual if usual else {})},
    }
    command = [sys.executable, "-m", "tests.benchmarks._baseline", json.dumps(spec)]
    environment = {**os.environ, **({} if workload.gpu else ENVIRONMENT)}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr.decode()[-3000:]}")
    result: Figures = json.loads(done.stdout.splitlines()[-1])
    return result


def our_flow(
    workload: Workload, model: str, dataset: Path, n: int, shard_size: int, out: Path, **engine: Any
) -> Figures:
    """The flow as a user starts it, with further fields of its `engine` section: with a `kind`, those alone.

    Its seconds: from an engine's first shard to the end of the last one, the mean over the engines, so that one which
    came up later than the others is not counted as slow.
    """
    settings = engine if "kind" in engine else workload.engine | engine
    flags = {
        "model.source": model,
        "dataset.path": dataset,
        "dataset.shard_size": shard_size,
        "output.path": out,
        "sampling.n": n,
        "sampling.max_tokens_field": "max_tokens",
        "sampling.ignore_eos": "true",
        **{f"sampling.{name}": value for name, value in PLAIN_SAMPLING.items()},
        **{f"engine.{name}": value for name, value in settings.items()},
        **({"engine.extra": json.dumps(workload.extra)} if workload.extra else {}),
        **({"prompt.system": workload.system} if workload.system else {}),
    }
    command = [sys.executable, "flows/generate.py", *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"our flow failed:\n{done.stderr[-3000:]}")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    shards = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("shards/*/*.manifest.json")]
    began: dict[str, float] = {}
    for shard in shards:
        began[shard["engine"]] = min(shard["started_at"], began.get(shard["engine"], math.inf))
    seconds = max(shard["started_at"] + shard["seconds"] for shard in shards) - mean(began.values())
    start = manifest["this_run"]["engine_facts"]["start_seconds"]
    idle = [engine["idle_seconds"] for engine in manifest["this_run"]["engines"]]
    made = {"tokens": manifest["tally"]["completion_tokens"], "seconds": seconds, "start": start, "idle": idle}
    busy = [gpu["mean_utilisation"] for gpu in manifest["this_run"]["gpus"]]
    return made | ({"gpu busy": busy} if busy else {})
