"""The GPUs an engine may use, found without initialising CUDA in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any


def visible_gpus() -> list[str]:
    """Ids for CUDA_VISIBLE_DEVICES: those it names already (index or UUID), else all there are; none on a CPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip() and gpu.strip() != "-1"]
    with _nvml() as nvml:
        return [str(index) for index in range(nvml.nvmlDeviceGetCount())] if nvml else []


def gpu_names(gpus: Sequence[str]) -> dict[str, str]:
    """The name that each of these ids has in all processes of the machine: its UUID; the id itself where unknown."""
    names = {gpu: gpu for gpu in gpus}
    with _nvml() as nvml:
        for gpu in gpus if nvml else ():
            if gpu.isdigit():
                with contextlib.suppress(nvml.NVMLError):
                    names[gpu] = str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(int(gpu))))
    return names


def cpu_binding(number: int, replicas: int) -> str:
    """The cores of one of several replicas on a CPU, as vLLM's VLLM_CPU_OMP_THREADS_BIND wants them."""
    cores = sorted(os.sched_getaffinity(0))
    mine = cores[number * len(cores) // replicas : (number + 1) * len(cores) // replicas] or [
        cores[number % len(cores)]
    ]
    return ",".join(map(str, mine))


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, or None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()
