"""Gentler settings for an engine that hung or ran out of memory: less at once, then less memory."""

from __future__ import annotations

import re

from tasks.config import EngineConfig
from tasks.records import Json

_OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "free memory on device",
    "cannot allocate memory",
)
_NO_CACHE = (
    "no available memory for the cache blocks",
    "larger than the available kv cache memory",
)
"""The weights and a step's activations left too little for the cache: a smaller share of the memory would be worse."""
_FREE_OF_TOTAL = re.compile(r"free memory on device.*?\(([\d.]+)/([\d.]+) GiB\)", re.IGNORECASE)
LEAST_MEMORY = 0.3
LEAST_TOKENS = 512


def is_out_of_memory(message: str) -> bool:
    """Whether an engine's last words tell of too little memory."""
    return _says(message, _OUT_OF_MEMORY + _NO_CACHE)


def gentler(overrides: Json, facts: Json, config: EngineConfig, words: str = "") -> Json:
    """The next step: half the sequences, half the batched tokens, a tenth less of the GPU's memory.

    `overrides` are the engine arguments of the last step, `facts` what the engine said of its own limits, if it got so
    far, `words` its last ones: where they tell how much memory is free (another process has the rest), that much is
    asked for, and nothing else need change. Returns `overrides` where there is no gentler step.
    """
    seqs = overrides.get("max_num_seqs") or facts.get("max_num_seqs") or config.max_num_seqs or 256
    tokens = overrides.get("max_num_batched_tokens") or facts.get("max_num_batched_tokens")
    tokens = tokens or config.max_num_batched_tokens or 8192
    memory = overrides.get("gpu_memory_utilization") or config.gpu_memory_utilization or 0.9
    if free := _FREE_OF_TOTAL.search(words):
        left = min(memory, float(free[1]) / float(free[2])) - 0.02
        return {**overrides, "gpu_memory_utilization": round(max(0.05, left), 2)}
    seqs = max(1, seqs // 2)
    less = memory if _says(words, _NO_CACHE) else min(memory, max(LEAST_MEMORY, memory - 0.1))
    return {
        **overrides,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": min(tokens, max(LEAST_TOKENS, seqs, tokens // 2)),
        "gpu_memory_utilization": round(less, 2),
    }


def _says(message: str, phrases: tuple[str, ...]) -> bool:
    lowered = message.lower()
    return any(phrase in lowered for phrase in phrases)
