"""Curator's LLM against a running server, by litellm: `python curator_llm.py SPEC`, in an environment with curator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bespokelabs import curator
from datasets import Dataset


class Answer(curator.LLM):  # type: ignore[misc]
    return_completions_object = True

    def prompt(self, row: Any) -> Any:
        return row["prompt"]

    def parse(self, row: Any, response: Any) -> Any:
        return {"prompt": row["prompt"], "response": response["choices"][0]["message"]["content"]}


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    records = [json.loads(line) for line in Path(spec["dataset"]).read_text().splitlines()]
    rows = [
        {"prompt": r["prompt"], "sample": s, "generation_params": json.dumps({"max_tokens": r["max_tokens"]})}
        for r in records
        for s in range(spec["n"])
    ]
    llm = Answer(
        model_name=f"hosted_vllm/{spec['model']}",
        backend="litellm",
        generation_params={"max_tokens": 1, "temperature": 1.0, "extra_body": {"ignore_eos": True}},
        backend_params={
            "base_url": f"{spec['url']}/v1",
            "max_requests_per_minute": 100_000,
            "max_tokens_per_minute": 100_000_000,
            "max_concurrent_requests": 512,
            "request_timeout": 3600,
            "invalid_finish_reasons": ["content_filter"],  # else it asks again for each that is cut at max_tokens
        },
    )
    llm(Dataset.from_list(rows), working_dir=f"{spec['folder']}/cache")
