"""Compressed files: read forwards only, so readers that stopped where a shard ended go on for the next one.

A range of a compressed file is given in decompressed bytes, and reaching it means decompressing all before it. An
engine's shards come in order, so it decompresses the file once to verify and once to read, whatever their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import IO, cast

from tasks.errors import InputChanged, RunError
from tasks.inputs.idle import IdleReaders
from tasks.storage import COPY_BYTES, open_input

CODECS = {".gz": "gzip", ".zst": "zstd"}

OnRead = Callable[[bytes], None]


def is_compressed(path: str) -> bool:
    """Whether the file's name says so."""
    return path.endswith(tuple(CODECS))


def read_compressed(path: str, block_bytes: int, on_read: OnRead) -> Iterator[bytes]:
    """The decompressed bytes from start to end; `on_read` sees the compressed ones as they are read.

    Raises RunError where the file is damaged or cut short.
    """
    with contextlib.closing(_Decompressed(path, on_read)) as reader:
        while block := reader.read(block_bytes):
            yield block


def read_compressed_range(path: str, start: int, end: int) -> Iterator[bytes]:
    """The decompressed bytes [start, end), fewer where there are no more. Raises InputChanged for a damaged file."""
    with _idle.lend(path, start, lambda: _Decompressed(path)) as reader:
        try:
            reader.skip_to(start)
            while reader.position < end and (block := reader.read(min(COPY_BYTES, end - reader.position))):
                yield block
        except RunError as error:
            raise InputChanged.of(path) from error


class _Decompressed:
    """A compressed file, open; `position` is in decompressed bytes. Members and frames that follow are read too."""

    def __init__(self, path: str, on_read: OnRead | None = None) -> None:
        import pyarrow as pa

        self.position = 0
        self._path = path
        self._file = _Watched(open_input(path), on_read)
        codec = next(codec for suffix, codec in CODECS.items() if path.endswith(suffix))
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), codec)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. Raises RunError where the file is damaged or cut short."""
        try:
            block = cast(bytes, self._stream.read(size))
        except OSError as error:
            # A disk's or a store's errors have a number, a codec's do not.
            if error.errno is not None:
                raise
            raise RunError(f"dataset.path: {self._path} is damaged or cut short: {error}") from error
        self.position += len(block)
        return block

    def skip_to(self, position: int) -> None:
        while self.position < position and self.read(min(COPY_BYTES, position - self.position)):
            pass

    def close(self) -> None:
        self._stream.close()
        self._file.close()


class _Watched:
    """A file for Arrow that shows what is read of it."""

    def __init__(self, file: IO[bytes], on_read: OnRead | None) -> None:
        self._file = file
        self._on_read = on_read

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        if self._on_read:
            self._on_read(block)
        return block

    def close(self) -> None:
        self._file.close()


_idle: IdleReaders[_Decompressed] = IdleReaders()
