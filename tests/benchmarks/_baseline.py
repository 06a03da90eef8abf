"""The sides that our flow is compared with, each in a process of its own: `python -m tests.benchmarks._baseline SPEC`.

SPEC is JSON: `side` (`one_call` or `usual_script`), `model`, `dataset`, `records`, `system`,
`n`, `engine`. Prints one line of
JSON: tokens, seconds of generation, seconds until the engine was ready.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 16


def main(spec: dict[str, Any]) -> dict[str, float]:
    began = time.perf_counter()
    from vllm import LLM

    engine = LLM(model=spec["model"], **spec["engine"])
    start = time.perf_counter() - began
    dataset = Path(spec["dataset"])
    records = [json.loads(line) for line in dataset.read_text(encoding="utf-8").splitlines()][: spec["records"]]
    made = _maker(engine, dataset.parent, spec["system"])
    side = {"one_call": _one_call, "usual_script": _usual_script}[spec["side"]]
    tokens, seconds = side(engine, made, records, spec["n"])
    return {"tokens": tokens, "seconds": seconds, "start": start}


def _one_call(engine: Any, made: Callable[[Any], Any], records: list[Any], n: int) -> tuple[int, float]:
    """Everything in one call, prompts and images ready before: what vLLM itself can do."""
    prompts = [made(record) for record in records]
    params = [_params(record, n) for record in records]
    began = time.perf_counter()
    outputs = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    return sum(len(c.token_ids) for output in outputs for c in output.outputs), seconds


def _usual_script(engine: Any, made: Callable[[Any], Any], records: list[Any], n: int) -> tuple[int, float]:
    """16 records a call, each prompt repeated n times, and a wait for the slowest of each call."""
    tokens, began = 0, time.perf_counter()
    for at in range(0, len(records), BATCH):
        batch = [record for record in records[at : at + BATCH] for _ in range(n)]
        outputs = engine.generate([made(r) for r in batch], [_params(r, 1) for r in batch], use_tqdm=False)
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
    return tokens, time.perf_counter() - began


def _params(record: Any, n: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(n=n, temperature=1.0, max_tokens=record["max_tokens"], ignore_eos=True)


def _maker(engine: Any, folder: Path, system: str | None) -> Callable[[Any], Any]:
    """From a record to vLLM's prompt, by the model's own chat template; images opened as its documentation does."""
    tokenizer = engine.get_tokenizer()

    def made(record: Any) -> Any:
        images = [str(folder / name) for name in record.get("images", [])]
        parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": record["prompt"]}]
        user = {"role": "user", "content": parts if images else record["prompt"]}
        messages = [*([{"role": "system", "content": system}] if system else []), user]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if not images:
            return prompt
        from qwen_vl_utils import process_vision_info

        return {"prompt": prompt, "multi_modal_data": {"image": process_vision_info(messages)[0]}}

    return made


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
