"""datatrove's InferenceRunner against a running server: `python datatrove_runner.py SPEC`, where datatrove is."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

SPEC = json.loads(sys.argv[1])


async def rollout(document: Any, generate: Callable[[Any], Awaitable[Any]]) -> Any:
    return await generate(
        {
            "messages": [{"role": "user", "content": document.text}],
            "max_tokens": document.metadata["max_tokens"],
            "temperature": 1.0,
            "ignore_eos": True,
        }
    )


if __name__ == "__main__":
    config = InferenceConfig(
        server_type="endpoint",
        endpoint_url=SPEC["url"],
        model_name_or_path=SPEC["model"],
        model_max_context=SPEC["max_model_len"],
        rollouts_per_document=SPEC["n"],
        max_concurrent_generations=500,
    )
    writer = JsonlWriter(f"{SPEC['folder']}/out", compression=None)
    pipeline = [
        JsonlReader(SPEC["dataset"], text_key="prompt"),
        InferenceRunner(rollout_fn=rollout, config=config, output_writer=writer),
    ]
    LocalPipelineExecutor(pipeline=pipeline, logging_dir=f"{SPEC['folder']}/logs").run()
