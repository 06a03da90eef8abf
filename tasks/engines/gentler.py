"""Gentler settings for an engine that hung or ran out of memory: less at once, then less memory."""

from __future__ import annotations

import re

from tasks.config import EngineConfig
from tasks.records import Json

_OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "free memory on device",
    "no available memory for the cache blocks",
    "larger than the available kv cache memory",
)

_FREE_OF_TOTAL = re.compile(r"free memory on device.*?\(([\d.]+)/([\d.]+) GiB\)", re.IGNORECASE)


def is_out_of_memory(message: str) -> bool:
    """Whether an engine's last words tell of too little memory."""
    lowered = message.lower()
    return any(words in lowered for words in _OUT_OF_MEMORY)


def gentler(overrides: Json, facts: Json, config: EngineConfig, words: str = "") -> Json:
    """The next step: half the sequences, half the batched tokens, a tenth less of the GPU's memory.

    `overrides` are the engine arguments of the last step, `facts` what the engine said of its own limits, if it got so
    far, `words` its last ones: where they tell how much memory is free (another process has the rest), that much
    is asked for, and nothing else need change.
    """
    seqs = overrides.get("max_num_seqs") or facts.get("max_num_seqs") or config.max_num_seqs or 256
    tokens = overrides.get("max_num_batched_tokens") or facts.get("max_num_batched_tokens")
    tokens = tokens or config.max_num_batched_tokens or 8192
    memory = overrides.get("gpu_memory_utilization") or config.gpu_memory_utilization or 0.9
    if free := _FREE_OF_TOTAL.search(words):
        left = min(memory, float(free[1]) / float(free[2])) - 0.02
        return {**overrides, "gpu_memory_utilization": round(max(0.05, left), 2)}
    seqs = max(1, seqs // 2)
    return {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": max(512, seqs, tokens // 2),
        "gpu_memory_utilization": round(max(0.3, memory - 0.1), 2),
    }
