"""The local launcher: an engine is a process of this machine, in a session of its own, on its own GPUs."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import orjson

from tasks.engines import lifeline
from tasks.engines.base import EngineSpec
from tasks.engines.devices import cpu_binding
from tasks.engines.launcher import EngineHandle
from tasks.records import Json

WORKER = (sys.executable, "-m", "tasks.engines.worker")

_QUIET = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",  # the model is a local folder by now
    "PYTHONUNBUFFERED": "1",
}


class LocalLauncher:
    """Starts worker processes. `groups` are the GPUs of each slot (an empty group: the CPU)."""

    def __init__(
        self,
        spec: EngineSpec,
        groups: list[list[str]],
        log_folder: Path,
        worker: tuple[str, ...] = WORKER,
    ) -> None:
        self.slots = len(groups)
        self._spec = spec
        self._groups = groups
        self._logs = log_folder
        self._worker = worker
        self._keeper: lifeline.Keeper | None = None

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> EngineHandle:
        if self._keeper is None:
            self._keeper = lifeline.Keeper()
        self._logs.mkdir(parents=True, exist_ok=True)
        log_path = self._logs / f"engine-{slot}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                self._worker,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment(slot),
                start_new_session=True,
            )
        self._keeper.watch(process.pid)
        handle = _LocalEngine(process, str(log_path), self._keeper)
        spec = self._spec.model_copy(update={"number": slot, "overrides": overrides})
        handle.send(spec.model_dump(mode="json"))
        handle.start(tell)
        return handle

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _environment(self, slot: int) -> dict[str, str]:
        environment = {**_QUIET, **os.environ}
        if self._groups[slot]:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._groups[slot])
        elif self.slots > 1:
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", cpu_binding(slot, self.slots))
        return environment


class _LocalEngine:
    """Each pipe has a thread of its own: an engine that is stopped holds up nobody else."""

    def __init__(self, process: subprocess.Popen[bytes], log_path: str, keeper: lifeline.Keeper) -> None:
        self.log_path = log_path
        self._process = process
        self._keeper = keeper
        self._commands: queue.SimpleQueue[Json | None] = queue.SimpleQueue()

    def start(self, tell: Callable[[Json], None]) -> None:
        """Start to pass on commands and events."""
        for work in (self._obey, self._reap, lambda: self._relay(tell)):
            threading.Thread(target=work, name=f"engine-{self._process.pid}", daemon=True).start()

    def send(self, command: Json) -> None:
        self._commands.put(command)

    def end(self, grace: float) -> None:
        lifeline.end_group(self._process.pid, grace, self._process)
        self._keeper.forget(self._process.pid)

    def _obey(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError), pipe:
            while (command := self._commands.get()) is not None:
                pipe.write(orjson.dumps(command, option=orjson.OPT_APPEND_NEWLINE))
                pipe.flush()

    def _reap(self) -> None:
        """What the engine's process leaves behind goes with it; until then it may hold the pipes open."""
        self._process.wait()
        self._commands.put(None)
        lifeline.end_group(self._process.pid, 0.0)

    def _relay(self, tell: Callable[[Json], None]) -> None:
        """Pass the engine's events on until it is gone, then say how it went."""
        pipe = self._process.stdout
        assert pipe is not None
        with pipe:
            for line in pipe:
                with contextlib.suppress(orjson.JSONDecodeError):
                    tell(orjson.loads(line))
        status = self._process.wait()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        tell({"event": "exit", "message": how})
