"""Ctrl-C in a run's first seconds, while Prefect is imported and nothing can be ended in order yet."""

from __future__ import annotations

import os
import signal
from types import FrameType

from tasks.engines import spare

EXIT_INTERRUPTED = 130
STOPPED = "stopped; what is finished is kept: run the same command to go on"


def heed_signals() -> None:
    """SIGINT and SIGTERM end the process with 130 and a line, until `flows.terminal` has better to do."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)


def _leave(_signum: int, _frame: FrameType | None) -> None:
    spare.discard()
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(EXIT_INTERRUPTED)  # the server's keeper ends the server
