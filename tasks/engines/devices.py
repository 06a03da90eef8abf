"""The GPUs an engine may use, found without initialising CUDA in this process."""

from __future__ import annotations

import os

from tasks.config import EngineConfig
from tasks.errors import RunError


def visible_gpus() -> list[str]:
    """Ids for CUDA_VISIBLE_DEVICES: those it names already (index or UUID), else all there are; none on a CPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip() and gpu.strip() != "-1"]
    return [str(index) for index in range(_count())]


def gpu_groups(engine: EngineConfig) -> list[list[str]]:
    """The GPUs of each replica; on a CPU, and for each server of `kind: openai`, a group without GPUs.

    Raises RunError where the machine has too few for the replicas asked for.
    """
    if engine.kind == "openai":
        return [[] for _ in engine.base_urls]
    gpus, each = visible_gpus(), engine.gpus_per_replica
    if not gpus:
        return [[] for _ in range(engine.replicas or 1)]
    replicas = engine.replicas or len(gpus) // each
    if replicas == 0 or replicas * each > len(gpus):
        wanted = f"{max(replicas, 1)} x {each} (engine.replicas x tensor_parallel_size x pipeline_parallel_size)"
        raise RunError(f"engine.replicas: {wanted} GPUs are asked for, {len(gpus)} are there: {', '.join(gpus)}")
    return [gpus[i * each : (i + 1) * each] for i in range(replicas)]


def cpu_binding(number: int, replicas: int) -> str:
    """The cores of one of several replicas on a CPU, as vLLM's VLLM_CPU_OMP_THREADS_BIND wants them."""
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[number * len(cores) // replicas : (number + 1) * len(cores) // replicas] or [
        cores[number % len(cores)]
    ]
    return ",".join(map(str, mine))


def _count() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
