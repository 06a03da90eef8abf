"""The keeper: reads `+PID` and `-PID` lines; at the end of its input it ends the process groups that are left.

Run as a file with nothing imported but the standard library, so that it starts at once and stays small.

Processes that are killed leave their shared memory behind, hundreds of megabytes with tensor parallelism: it is looked
for before they are, and removed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

GRACE_SECONDS = 5.0
SHARED_MEMORY = "/dev/shm/"  # noqa: S108
OF_PROCESSES = ("psm_", "torch_", "nccl-", "cuda.shm.")
"""How such files' names begin (Python's, torch's, NCCL's, CUDA's); a model that somebody keeps there is another's."""


def main() -> None:
    """Keep watch until the other end of the pipe closes, then end what is still there."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watched: set[int] = set()
    for line in sys.stdin:
        pid = int(line[1:])
        if line.startswith("+"):
            watched.add(pid)
        else:
            watched.discard(pid)
    _end(watched)


def shared_memory_of(groups: Collection[int]) -> set[str]:
    """Files of shared memory that processes of these groups have mapped (Linux)."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(process.name)) in groups:
                for line in (process / "maps").read_text().splitlines():
                    name = line.partition(SHARED_MEMORY)[2]
                    if name.startswith(OF_PROCESSES) and "/" not in name and not name.endswith(" (deleted)"):
                        found.add(SHARED_MEMORY + name)
    return found


def remove(files: Iterable[str]) -> None:
    """Remove files, those that are there."""
    for file in files:
        with contextlib.suppress(OSError):
            Path(file).unlink()


def _end(pids: set[int]) -> None:
    shared = shared_memory_of(pids)
    left = {pid for pid in pids if _signal(pid, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = {pid for pid in left if _signal(pid, 0)}
    for pid in left:
        _signal(pid, signal.SIGKILL)
    remove(shared)


def _signal(pid: int, signum: int) -> bool:
    """Signal the group `pid` leads, or the process alone where it leads none. False when it is gone."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, signum)
        except ProcessLookupError:
            continue
        except PermissionError:
            return False
        return True
    return False


if __name__ == "__main__":
    main()
