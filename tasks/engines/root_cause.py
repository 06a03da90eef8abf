"""Why an engine ended, by what its processes wrote to the log.

vLLM's front end only says that its core or a worker process failed and that the cause stands "above". The cause decides
what is done (out of memory: gentler settings), and a person should not have to look for it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tasks.engines.gentler import is_out_of_memory

MOST_BYTES = 1 << 20
_EXCEPTION = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception): .+)$")
_SAYS_NOTHING = re.compile(r"see (the )?(root cause|stack trace)|background process|EngineDeadError", re.IGNORECASE)


def log_position() -> int:
    """Bytes that the log on stderr holds by now; 0 where stderr is no file."""
    status = os.fstat(2)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def root_cause(words: str, since: int) -> str:
    """`words`, or, where they only point at the log, the cause that the log on stderr tells after byte `since`.

    Out of memory wins over other exceptions: when one of several processes runs out, the others fail for want of it.
    """
    if not _SAYS_NOTHING.search(words):
        return words
    causes = [line for line in _exceptions(since) if not _SAYS_NOTHING.search(line)]
    return next((line for line in causes if is_out_of_memory(line)), causes[-1] if causes else words)


def _exceptions(since: int) -> Iterator[str]:
    if not log_position():
        return
    with Path("/proc/self/fd/2").open("rb") as log:
        log.seek(max(since, log_position() - MOST_BYTES))
        for line in log.read().decode(errors="replace").splitlines():
            if found := _EXCEPTION.search(line):
                yield found[1]
