"""Readers that can only go forwards, kept open where one shard ended, for a later shard of the same file."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tasks.storage import filesystem, is_remote

MOST_IDLE = 8


class ForwardReader(Protocol):
    """Something open at a position (bytes or rows) that only grows."""

    position: int

    def close(self) -> None: ...


Reader = TypeVar("Reader", bound=ForwardReader)


class IdleReaders(Generic[Reader]):
    """A few idle readers. Verifying and reading a shard are two passes: each finds the reader of its last pass here.

    A reader of a file that has been replaced since is never lent. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[object, Reader]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(
        self, path: str, position: int, open_reader: Callable[[], Reader], variant: object = None
    ) -> Iterator[Reader]:
        """A reader at or before the position: the nearest idle one of this variant, or a new one at the start."""
        key = (path, _version(path), variant)
        reader = self._take(key, position) or open_reader()
        try:
            yield reader
        except GeneratorExit:
            self._keep(key, reader)
            raise
        except BaseException:
            reader.close()
            raise
        self._keep(key, reader)

    def _take(self, key: object, position: int) -> Reader | None:
        with self._lock:
            fit = [i for i, (k, reader) in enumerate(self._idle) if k == key and reader.position <= position]
            if not fit:
                return None
            return self._idle.pop(max(fit, key=lambda i: self._idle[i][1].position))[1]

    def _keep(self, key: object, reader: Reader) -> None:
        with self._lock:
            self._idle.append((key, reader))
            while len(self._idle) > MOST_IDLE:
                self._idle.pop(0)[1].close()


def _version(path: str) -> object:
    """Changes when the file does. Raises FileNotFoundError."""
    if is_remote(path):
        fs, place = filesystem(path)
        return fs.ukey(place)
    status = Path(path).stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns)
