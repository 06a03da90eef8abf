"""Ray Data LLM with a vLLM engine of its own: `python ray_data_llm.py SPEC`, in an environment with ray and vllm.

Prints tokens and seconds, from the first request to the last answer. It takes one sample a row, so rows are repeated.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig


def before(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": row["prompt"]}],
        "sampling_params": {"temperature": 1.0, "max_tokens": int(row["max_tokens"]), "ignore_eos": True},
    }


def after(row: dict[str, Any]) -> dict[str, Any]:
    took, tokens = float(row["time_taken_llm"]), int(row["num_generated_tokens"])
    return {"text": row["generated_text"], "tokens": tokens, "ended": time.time(), "took": took}


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    records = [json.loads(line) for line in Path(spec["dataset"]).read_text().splitlines()]
    rows = [record for record in records for _ in range(spec["n"])]
    ray.init(num_cpus=8, include_dashboard=False, _temp_dir=spec["ray_folder"], log_to_driver=False)
    config = vLLMEngineProcessorConfig(
        model_source=spec["model"],
        engine_kwargs={**spec["engine"], "enforce_eager": True, "distributed_executor_backend": "uni"},
        placement_group_config={"bundles": [{"CPU": 1}]},
        concurrency=1,
        batch_size=len(rows),
        max_concurrent_batches=2,
        log_engine_metrics=False,
    )
    made = build_processor(config, preprocess=before, postprocess=after)(ray.data.from_items(rows)).take_all()
    began, ended = min(row["ended"] - row["took"] for row in made), max(row["ended"] for row in made)
    print(json.dumps({"tokens": sum(row["tokens"] for row in made), "seconds": ended - began}))
    ray.shutdown()
