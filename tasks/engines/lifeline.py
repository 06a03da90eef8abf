"""Ties the life of processes to ours: whatever ends the flow, kill -9 included, ends its engines too.

Three ties, each for what the others miss: the kernel's parent-death signal (direct children), a keeper process that
sees the flow's end of a pipe close and ends whole process groups (also stopped or stuck ones), and vLLM's plugin hook,
which arms the parent-death signal in the processes that vLLM starts below an engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tasks.engines.keeper import remove, shared_memory_of

ENGINE_PID = "DATAGEN_ENGINE_PID"
"""Environment variable: the pid of the engine's own process; what vLLM starts below it is told apart by it."""

_PR_SET_PDEATHSIG = 1


def on_parent_death(signum: int) -> None:
    """Have the kernel send us `signum` when the thread that started this process ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)


def die_with_parent() -> None:
    """vLLM's general plugin: below one of our engines, die with the process above. Elsewhere nothing happens."""
    engine = os.environ.get(ENGINE_PID)
    if engine is not None and engine != str(os.getpid()):
        on_parent_death(signal.SIGKILL)


def end_group(pid: int, grace: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """End the process group led by `pid`: SIGTERM, then SIGKILL after `grace` seconds or once the leader is gone.

    Shared memory that it would leave behind is removed.
    """
    shared = shared_memory_of([pid])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if process is not None:
        process.wait()
    remove(shared)


class Keeper:
    """A small process in a session of its own that ends the registered process groups when this process is gone."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._lock = threading.Lock()

    def watch(self, pid: int) -> None:
        """End the group (or the process) `pid` when this process ends."""
        self._say(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """`pid` has ended by itself."""
        self._say(f"-{pid}\n")

    def close(self) -> None:
        """Let the keeper go; it ends what it still watches."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            pipe.write(line.encode())
            pipe.flush()
