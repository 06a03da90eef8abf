"""Tokens a second of the whole flow against a single `LLM.generate` call and against the usual script.

Same prompts, output lengths (log-normal: a few are many times the median), engine settings and machine; each side in a
process of its own, one after the other; engine start apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import models
from tests.benchmarks.harness import Result

ENGINE = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 128}
BATCH = 16
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "prompts.jsonl")
        _write_dataset(dataset, options.records)
        runs: dict[str, list[dict[str, float]]] = {"one call": [], "usual script": [], "our flow": []}
        for number in range(options.rounds):
            runs["one call"].append(_in_process("one_call", dataset, options.n))
            runs["our flow"].append(_our_flow(dataset, Path(folder, f"out-{number}"), options))
            runs["usual script"].append(_in_process("usual_script", dataset, options.n))
    return _result(runs)


def _result(runs: dict[str, list[dict[str, float]]]) -> Result:
    speeds = {side: sorted(r["tokens"] / r["seconds"] for r in done)[len(done) // 2] for side, done in runs.items()}
    rows = [
        {
            "side": side,
            "tokens/s": round(speeds[side], 1),
            "of one call": round(speeds[side] / speeds["one call"], 3),
            "engine ready after s": round(done[0]["start"], 1),
        }
        for side, done in runs.items()
    ]
    figures = {
        "our flow / one call": round(speeds["our flow"] / speeds["one call"], 3),
        "our flow / usual script": round(speeds["our flow"] / speeds["usual script"], 3),
    }
    return Result(rows, figures, {"our flow / one call": ">= 0.98", "our flow / usual script": ">= 1.8"})


def _write_dataset(path: Path, records: int) -> None:
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(records):
            words = " ".join(draw.choice(["count", "the", "red", "houses", "and", "explain", "why"]) for _ in range(40))
            length = min(512, max(8, int(draw.lognormvariate(3.6, 0.9))))
            file.write(json.dumps({"prompt": f"Task {number}: {words}", "max_tokens": length}) + "\n")


def _in_process(side: str, dataset: Path, n: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.throughput", side, str(dataset), str(n)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        env={**os.environ, **ENVIRONMENT},
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _our_flow(dataset: Path, out: Path, arguments: argparse.Namespace) -> dict[str, float]:
    flags = {
        "model.source": _model(), "dataset.path": dataset, "output.path": out, "sampling.n": arguments.n,
        "dataset.shard_size": -(-arguments.records // arguments.shards), "sampling.max_tokens_field": "max_tokens",
        "sampling.ignore_eos": "true", "sampling.temperature": 1.0,
        **{f"engine.{name}": value for name, value in ENGINE.items()},
    }  # fmt: skip
    command = [sys.executable, "flows/generate.py"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    manifest = json.loads((out / "manifest.json").read_text())
    shards = [json.loads(path.read_text()) for path in out.glob("shards/*/*.manifest.json")]
    began = min(shard["started_at"] for shard in shards)
    ended = max(shard["started_at"] + shard["seconds"] for shard in shards)
    start = manifest["this_run"]["engine_facts"]["start_seconds"]
    return {"tokens": manifest["tally"]["completion_tokens"], "seconds": ended - began, "start": start}


def _baseline(side: str, dataset: Path, n: int) -> dict[str, float]:
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    engine = LLM(model=_model(), enforce_eager=True, **ENGINE)  # type: ignore[arg-type]
    start = time.perf_counter() - began
    records = [json.loads(line) for line in dataset.read_text().splitlines()]
    tokenizer = engine.get_tokenizer()
    prompts: list[Any] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": r["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        for r in records
    ]
    lengths = [r["max_tokens"] for r in records]
    began = time.perf_counter()
    tokens = 0
    if side == "one_call":
        params = [SamplingParams(n=n, temperature=1.0, max_tokens=m, ignore_eos=True) for m in lengths]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        tokens = sum(len(c.token_ids) for o in outputs for c in o.outputs)
    else:
        # The usual script: 16 records a call, each prompt repeated n times, and a wait for the slowest of each call.
        for at in range(0, len(prompts), BATCH):
            batch = [p for p in prompts[at : at + BATCH] for _ in range(n)]
            params = [
                SamplingParams(temperature=1.0, max_tokens=m, ignore_eos=True)
                for m in lengths[at : at + BATCH]
                for _ in range(n)
            ]
            tokens += sum(len(o.outputs[0].token_ids) for o in engine.generate(batch, params, use_tqdm=False))
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "start": start}


def _model() -> str:
    return str(models.cached(models.smollm2))


if __name__ == "__main__":
    print(json.dumps(_baseline(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
