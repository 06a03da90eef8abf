"""A worker process on this machine: `python -m tasks.engines.worker` in a session of its own, JSON lines in and out."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from tasks.config import GenerateConfig
from tasks.engines import lifeline
from tasks.engines.base import EngineSpec
from tasks.records import Json

WORKER = (sys.executable, "-m", "tasks.engines.worker")
AHEAD = "--ahead"
"""An argument of the worker: import vLLM before the spec comes."""

_QUIET = {
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",  # the model is a local folder by now
    "PYTHONUNBUFFERED": "1",
}


def base_environment(config: GenerateConfig) -> dict[str, str]:
    """This process's environment and what keeps a worker's libraries quiet; what the user has set wins."""
    environment = {**_QUIET, **os.environ}
    if config.engine.pool == "local":
        environment.setdefault("VLLM_HOST_IP", "127.0.0.1")  # its processes are all here: none has to listen to others
    if config.dataset.path.startswith("hf://") and "HF_HUB_OFFLINE" not in os.environ:
        del environment["HF_HUB_OFFLINE"]  # the worker reads the dataset from there
    return environment


class WorkerProcess:
    """A started worker. It ends with the thread that started it, with this process, or by `end`.

    Each pipe has a thread of its own: a worker that is stopped holds up nobody else.
    """

    def __init__(
        self,
        spec: EngineSpec,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        keeper: lifeline.Keeper,
        held: Sequence[int] = (),
        spare: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """`held` are descriptors of locks that the worker keeps open: they are free when it is gone, not before.

        `spare` is a worker process that has been started, by this command, and waits for its spec.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = spare or subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                pass_fds=held,
                start_new_session=True,
            )
        self.log_path = str(log_path)
        self._keeper = keeper
        self._commands: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        keeper.watch(self._process.pid)
        self.send(spec.model_dump(mode="json"))

    def start(self, tell: Callable[[Json], None]) -> None:
        """Start to pass on commands and events; the last event is `exit`."""
        for work in (self._obey, self._reap, lambda: self._relay(tell)):
            threading.Thread(target=work, name=f"engine-{self._process.pid}", daemon=True).start()

    def send(self, command: Json) -> None:
        """Never raises and never blocks: a worker that is gone says so by its `exit` event."""
        self._commands.put(command)

    def end(self, grace: float) -> None:
        """End it and everything below it; returns when it is gone."""
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
