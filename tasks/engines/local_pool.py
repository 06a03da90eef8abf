"""The local launcher: an engine is a process of this machine, in a session of its own, on its own GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.engines import lifeline, spare
from tasks.engines.base import EngineSpec
from tasks.engines.devices import cores_environment, share_of_cores
from tasks.engines.gpu_locks import Gpus
from tasks.engines.launcher import EngineHandle
from tasks.engines.worker_process import WORKER, WorkerProcess, base_environment
from tasks.records import Json


class LocalLauncher:
    """Starts worker processes, each on one group of the run's GPUs (or on the CPU)."""

    def __init__(self, spec: EngineSpec, gpus: Gpus, log_folder: Path, worker: tuple[str, ...] = WORKER) -> None:
        self._spec = spec
        self._gpus = gpus
        self._logs = log_folder
        self._worker = worker
        self._keeper: lifeline.Keeper | None = None

    @property
    def slots(self) -> int:
        """The groups of GPUs that the run holds; asking takes what has become free."""
        self._gpus.take()
        return len(self._gpus.groups)

    @property
    def trouble(self) -> str | None:
        """Why no engine can be had."""
        return self._gpus.trouble

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> EngineHandle:
        if self._keeper is None:
            self._keeper = lifeline.Keeper()
        spec = self._spec.model_copy(update={"number": slot, "overrides": overrides})
        log_path = self._logs / f"engine-{slot}.log"
        environment, locks = self._environment(slot), self._gpus.locks(slot)
        waiting = None if locks else spare.take(self._worker, environment)
        worker = WorkerProcess(spec, self._worker, environment, log_path, self._keeper, locks, waiting)
        worker.start(tell)
        return worker

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        self._gpus.close()

    def _environment(self, slot: int) -> dict[str, str]:
        environment = base_environment(self._spec.config)
        groups = self._gpus.groups
        if groups[slot]:
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as the indices were counted
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(groups[slot])
        elif (processes := len(groups) * self._spec.config.engine.gpus_per_replica) > 1:
            environment = cores_environment(share_of_cores(processes)) | environment
        return environment
