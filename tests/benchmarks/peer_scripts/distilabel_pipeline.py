"""A distilabel pipeline against a running server: `python distilabel_pipeline.py SPEC`, where distilabel is.

It has one max_new_tokens for all records: the mean of theirs, so that it makes as many tokens and has no stragglers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    records = [json.loads(line) for line in Path(spec["dataset"]).read_text().splitlines()]
    mean = round(sum(record["max_tokens"] for record in records) / len(records))
    with Pipeline(name="benchmark", cache_dir=f"{spec['folder']}/cache") as pipeline:
        rows = [{"instruction": record["prompt"]} for record in records]
        load = LoadDataFromDicts(data=rows, batch_size=len(rows))
        generate = TextGeneration(
            llm=OpenAILLM(
                model=spec["model"],
                base_url=f"{spec['url']}/v1",
                api_key="none",
                timeout=3600,
                generation_kwargs={"max_new_tokens": mean, "temperature": 1.0, "extra_body": {"ignore_eos": True}},
            ),
            num_generations=spec["n"],
            input_batch_size=len(records),
        )
        load >> generate
    pipeline.run(use_cache=False)
