"""Why an engine ended, by what its processes wrote to the log.

vLLM's front end only says that its core or a worker process failed and that the cause stands "above". The cause decides
what is done (out of memory: gentler settings), and a person should not have to look for it.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from tasks.engines.gentler import is_out_of_memory

MOST_BYTES = 1 << 20
_EXCEPTION = re.compile(
    r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception): .+|(?<=\] )[A-Za-z_]\w*Error|"
    r"Worker proc \S+ died unexpectedly(?: \(exit code: -?\d+\))?)"
)
_OF_WORKER = re.compile(r"^\(Worker|Worker proc \S+ died")
_SAYS_NOTHING = re.compile(r"see (the )?(root cause|stack trace)|background process|EngineDeadError", re.IGNORECASE)


def log_position() -> int:
    """Bytes that the log on stderr holds by now; 0 where stderr is no file."""
    status = os.fstat(2)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def root_cause(words: str, since: int) -> str:
    """`words`, or, where they only point at the log, the cause that the log on stderr tells after byte `since`.

    Out of memory wins over other exceptions: when one of several processes runs out, the others fail for want of it.
    So does what a worker process said before its core failed for want of the worker.
    """
    if not _SAYS_NOTHING.search(words):
        return words
    causes = [(of_worker, line) for of_worker, line in _exceptions(since) if not _SAYS_NOTHING.search(line)]
    memory = (line for _, line in causes if is_out_of_memory(line))
    workers = [line for _, line in itertools.takewhile(lambda cause: cause[0], causes)]
    last = (workers or [line for _, line in causes] or [words])[-1]
    return next(memory, last)


def _exceptions(since: int) -> Iterator[tuple[bool, str]]:
    """Whether a worker process said it, or it was said of one; and the words."""
    if not log_position():
        return
    with Path("/proc/self/fd/2").open("rb") as log:
        log.seek(max(since, log_position() - MOST_BYTES))
        for line in log.read().decode(errors="replace").splitlines():
            if found := _EXCEPTION.search(line):
                yield bool(_OF_WORKER.search(line)), found[1]
