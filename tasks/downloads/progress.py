"""Progress of a download as log lines, by what is on the disk."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from tasks.run_log import log

SECONDS = 5.0


@contextlib.contextmanager
def shown(name: str, total: int, on_disk: Callable[[], int]) -> Iterator[None]:
    """While the block runs, log `on_disk()` of `total` bytes every few seconds, and what it came to at the end."""
    ended = threading.Event()
    start, began = on_disk(), time.monotonic()

    def line(verb: str) -> str:
        done = min(on_disk(), total)
        speed = max(done - start, 0) / max(time.monotonic() - began, 1e-3)
        return f"{verb} {name}: {_size(done)} of {_size(total)} ({done * 100 // max(total, 1)} %), {_size(speed)}/s"

    def report() -> None:
        while not ended.wait(SECONDS):
            log.info(line("downloading"))

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
        log.info(line("downloaded"))
    finally:
        ended.set()
        thread.join()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
