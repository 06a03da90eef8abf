"""The keeper: reads `+PID` and `-PID` lines; at the end of its input it ends the process groups that are left.

Run as a file with nothing imported but the standard library, so that it starts at once and stays small.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_SECONDS = 5.0


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


def _end(pids: set[int]) -> None:
    left = {pid for pid in pids if _signal(pid, signal.SIGTERM)}
    deadline = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = {pid for pid in left if _signal(pid, 0)}
    for pid in left:
        _signal(pid, signal.SIGKILL)


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
