"""Memory and utilisation of the engines' GPUs, by NVML. Without a GPU (or its driver) there are simply no figures."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.records import Json

GIB = float(1 << 30)


@dataclass
class Gpu:
    """One GPU: its last figures, and what they came to. `utilisation` is the share of time that a kernel ran, in %;
    None where the device does not tell (MIG). The mean is over moments in which the engine was generating."""

    id: str
    engine: int
    name: str
    total: int
    used: int = 0
    peak: int = 0
    utilisation: int | None = None
    busy: int = 0
    moments: int = 0

    def words(self) -> tuple[str, str]:
        """Memory and utilisation for a table."""
        load = "–" if self.utilisation is None else f"{self.utilisation}%"
        return f"{self.used / GIB:.1f} of {self.total / GIB:.0f} GiB", load


class GpuFigures:
    """`groups` are the ids (index or UUID) of each engine's GPUs, more as the run gets them. One thread calls `sample`,
    every second or so."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self._groups = groups
        self._known = 0
        self._handles: list[tuple[Gpu, Any]] = []
        self._nvml: Any = None
        self._find()

    def sample(self, generating: Collection[int]) -> None:
        """Look at all GPUs. `generating` are the numbers of the engines that generate now."""
        self._find()
        for gpu, handle in self._handles:
            with contextlib.suppress(self._nvml.NVMLError):
                gpu.used = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
                gpu.peak = max(gpu.peak, gpu.used)
                gpu.utilisation = int(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
                if gpu.engine in generating:
                    gpu.busy += gpu.utilisation
                    gpu.moments += 1

    def of(self, engine: int) -> list[Gpu]:
        """An engine's GPUs."""
        return [gpu for gpu, _ in self._handles if gpu.engine == engine]

    def summary(self) -> list[Json]:
        """For the run's manifest: a line a GPU."""
        return [
            {
                "gpu": gpu.id,
                "engine": gpu.engine,
                "name": gpu.name,
                "memory_gib": round(gpu.total / GIB, 2),
                "peak_memory_gib": round(gpu.peak / GIB, 2),
                "mean_utilisation": round(gpu.busy / gpu.moments / 100, 4) if gpu.moments else None,
            }
            for gpu, _ in self._handles
        ]

    def _find(self) -> None:
        """Get hold of the GPUs that have come up."""
        first, self._known = self._known, max(self._known, len(self._groups))
        new = [(engine, id_) for engine in range(first, self._known) for id_ in self._groups[engine]]
        if not new:
            return
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            if self._nvml is None:
                pynvml.nvmlInit()
                self._nvml = pynvml
            for engine, id_ in new:
                self._add(id_, engine)

    def _add(self, id_: str, engine: int) -> None:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(int(id_)) if id_.isdigit() else nvml.nvmlDeviceGetHandleByUUID(id_)
        name, total = nvml.nvmlDeviceGetName(handle), int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        self._handles.append((Gpu(id_, engine, str(name), total), handle))
