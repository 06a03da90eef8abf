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
    with _nvml() as nvml:
        uuids = [_uuid(nvml, index) for index in range(nvml.nvmlDeviceGetCount())] if nvml else []
    return {gpu: _full_name(gpu, uuids) for gpu in gpus}


def share_of_cores(processes: int) -> int:
    """Each one's, of the cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def cores_environment(cores: int) -> dict[str, str]:
    """The environment of a vLLM process that computes on so many of the cores which it has together with others.

    Threads beyond the cores there are wait for one another in spin locks: two replicas on two cores were six times
    slower than one. vLLM binds threads to cores only where it starts more than one process.
    """
    return {"OMP_NUM_THREADS": str(cores), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _full_name(gpu: str, uuids: Sequence[str]) -> str:
    """CUDA takes an index, a UUID, or as much of a UUID's beginning as tells which it is."""
    if gpu.isdigit():
        return uuids[int(gpu)] if int(gpu) < len(uuids) else gpu
    begun = [uuid for uuid in uuids if uuid.startswith(gpu)]
    return begun[0] if len(begun) == 1 else gpu


def _uuid(nvml: Any, index: int) -> str:
    try:
        return str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
    except nvml.NVMLError:  # a GPU that has fallen off the bus
        return str(index)


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
