"""From the command to the first finished sample, and where the time goes, beside the start of a single `LLM`.

The run has a Prefect server of its own and one record a shard; its marks are read from its log and its shards'
manifests. `python flows/generate.py --help` is timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from tests.benchmarks.harness import Figures, Result, seconds
from tests.benchmarks.throughput import baseline
from tests.benchmarks.workloads import WORKLOADS
from tests.models import cached

MARKS = {
    "Prefect's server answers": "/api/admin/version",
    "the flow has begun": "Beginning flow run",
    "the dataset is split": "datagen: dataset: ",
}
"""What has happened when the run's log holds these words."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of a model; default: SmolLM2-135M")
    parser.add_argument("--only-help", action="store_true", help="time `--help` only")


def measure(options: argparse.Namespace) -> Result:
    help_seconds = [seconds(_help) for _ in range(max(3, options.rounds))]
    figures: Figures = {"--help answers after, s": round(min(help_seconds), 2)}
    if options.only_help:
        return Result([{"what": "--help", "s": figures["--help answers after, s"]}], figures, {}, [])
    workload = WORKLOADS["mixed"]
    model = options.model or str(cached(workload.model))
    runs: list[Figures] = []
    alone: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = workload.write(Path(folder), 4)
        environment = {**os.environ, "PREFECT_HOME": f"{folder}/prefect"}
        environment.pop("PREFECT_API_URL", None)
        for number in range(options.rounds + 1):  # the first makes the server's database, and is not counted
            runs.append(start(model, dataset, Path(folder, f"out-{number}"), environment))
            alone.append(baseline("one_call", workload, model, dataset, 1)["start"])
    marks = {mark: median(run[mark] for run in runs[1:]) for mark in runs[0]}
    rows = [{"after the command": mark, "s": round(at, 2)} for mark, at in marks.items()]
    figures |= {
        "our engine ready after, s": round(marks[READY], 1),
        "one LLM ready after, s": round(median(alone[1:]), 1),
        "first run on an empty home, engine ready after, s": round(runs[0][READY], 1),
    }
    figures["our engine ready / one LLM ready"] = round(marks[READY] / median(alone[1:]), 2)
    asked = {"--help answers after, s": "< 1.5", "our engine ready / one LLM ready": "<= 1.9"}
    return Result(rows, figures, asked)


READY, FIRST, ALL, END = "the engine is ready", "the first sample is finished", "all 4 records are", "the command ends"


def start(model: str, dataset: Path, out: Path, environment: dict[str, str]) -> Figures:
    """Seconds from the command to each mark."""
    flags = {
        "model.source": model,
        "dataset.path": dataset,
        "dataset.shard_size": 1,
        "output.path": out,
        "sampling.max_tokens": 8,
        "sampling.ignore_eos": "true",
        "engine.max_model_len": 1024,
        "validation.max_truncated_rate": 1.0,
    }
    command = [sys.executable, "flows/generate.py", *(f"--{name}={value}" for name, value in flags.items())]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    ended = time.time()
    if done.returncode:
        raise RuntimeError(f"the flow failed:\n{done.stderr[-3000:]}")
    shards = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("shards/*/*.manifest.json")]
    finished = [shard["started_at"] + shard["seconds"] for shard in shards]
    at = _log_marks(out / "logs/run.log")
    at |= {READY: min(shard["started_at"] for shard in shards), FIRST: min(finished), ALL: max(finished), END: ended}
    return {mark: when - began for mark, when in at.items()}


def _log_marks(path: Path) -> dict[str, float]:
    at = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for mark, words in MARKS.items():
        line = next(line for line in lines if words in line)
        at[mark] = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    return at


def _help() -> None:
    subprocess.run([sys.executable, "flows/generate.py", "--help"], stdout=subprocess.DEVNULL, check=True)
