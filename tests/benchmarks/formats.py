"""The same records as jsonl, gz, zst, parquet and csv, local and on S3, through the whole flow with a real engine.

Greedy, on a tiny Qwen3 of random weights. Asked for: one data.jsonl, byte for byte, from all ten runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import models
from tests.benchmarks.harness import ROOT, Figures, Result, seconds
from tests.inputs.tables import SUFFIXES, texts, write_table
from tests.seaweed import Seaweed, running_seaweed

BUCKET = "formats"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=1000)


def measure(options: argparse.Namespace) -> Result:
    rows = []
    with tempfile.TemporaryDirectory() as folder, running_seaweed() as server:
        server.bucket(BUCKET)
        for suffix in SUFFIXES:
            path = write_table(Path(folder, f"data{suffix}"), texts(options.records), 300)
            server.filesystem().put_file(str(path), f"{BUCKET}/{path.name}")
            rows.append(_run(server, str(path), f"{folder}/out{suffix}"))
            rows.append(_run(server, f"s3://{BUCKET}/{path.name}", f"s3://{BUCKET}/out{suffix}"))
    different = len({row["sha256 of data.jsonl"] for row in rows})
    return Result(rows, {"different data.jsonl": different}, {"different data.jsonl": "1"})


def _run(server: Seaweed, dataset: str, output: str) -> Figures:
    flags = {
        "model.source": models.cached(models.tiny_qwen3), "dataset.path": dataset, "output.path": output,
        "dataset.shard_size": 256, "sampling.temperature": 0, "sampling.max_tokens": 4, "engine.dtype": "float32",
        "engine.max_model_len": 256, "engine.max_num_seqs": 64, "output.keep_fields": '["note"]',
    }  # fmt: skip
    command = [sys.executable, "flows/generate.py"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | server.environment
    taken = seconds(lambda: subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    data = _read(server, f"{output}/data.jsonl")
    return {
        "dataset": dataset.rsplit("/", 1)[-1],
        "place": "s3" if dataset.startswith("s3") else "local",
        "rows": data.count(b"\n"),
        "sha256 of data.jsonl": hashlib.sha256(data).hexdigest()[:16],
        "seconds": round(taken, 1),
    }


def _read(server: Seaweed, path: str) -> bytes:
    if path.startswith("s3://"):
        content: bytes = server.filesystem().cat_file(path)
        return content
    return Path(path).read_bytes()
