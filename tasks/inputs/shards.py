"""Cuts a stream of records into shards and hashes them, in threads and constant memory."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tasks.records import FilePart, Shard

BATCH_BYTES = 1 << 20
BATCHES_IN_FLIGHT = 3

Bytes = bytes | memoryview


class ShardCutter:
    """Takes the input's records in order and cuts them into shards, up to `limit` records in all.

    `size_at` says how many records the shard has that begins with an original_index.
    Bytes between two records (blank lines) count to the shard of the record that follows them. `shards` is complete
    after the `with` block.
    """

    def __init__(self, size_at: Callable[[int], int], limit: int | None = None) -> None:
        self.limit = limit
        self.records = 0
        self.input_bytes = 0
        self.shards: list[Shard] = []
        self._input_digest = hashlib.sha256()
        self._input_thread, self._content_thread = _HashThread(), _HashThread()
        self._closed: list[_Open] = []
        self._size_at = size_at
        self._begin()

    @property
    def room(self) -> int:
        """Records until the open shard is full, or the limit reached; at 0, `cut` is due."""
        room = self._size - self._open.records
        return room if self.limit is None else min(room, self.limit - self.records)

    @property
    def finished(self) -> bool:
        return self.records == self.limit

    @property
    def input_sha256(self) -> str:
        """Of the bytes given to `hash_input`, in hex; complete after the `with` block."""
        return self._input_digest.hexdigest()

    def hash_input(self, block: Bytes) -> None:
        """Count a block of an input file, as it is stored, to the size and the hash of the whole input."""
        self.input_bytes += len(block)
        self._input_thread.update(self._input_digest, block)

    def start_file(self, path: str, position: int = 0, line: int = 1) -> None:
        """What follows comes from this file, from `position` (bytes or rows) on, where this 1-based line begins."""
        self._open.begin(path, position, line)

    def add(self, content: Bytes, records: int) -> None:
        """The next bytes of the open shard, with the ends of so many records; at most `room`."""
        self._content_thread.update(self._open.digest, content)
        self._open.records += records
        self.records += records

    def cut(self, position: int, line: int) -> None:
        """Close the full shard here; the next one begins here, with the line of this 1-based number."""
        path = self._open.path
        self._close(position)
        self._open.begin(path, position, line)

    def end_file(self, position: int) -> None:
        """The file ends here. A shard with no record yet starts afresh: nothing that is no record precedes one."""
        self._open.end(position)
        if not self._open.records:
            self._begin()

    def __enter__(self) -> ShardCutter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._input_thread.close()
        self._content_thread.close()
        if kind is None:
            if self._open.records:
                self._closed.append(self._open)
            self.shards = [opened.shard(index) for index, opened in enumerate(self._closed)]

    def _close(self, position: int) -> None:
        self._open.end(position)
        self._closed.append(self._open)
        self._begin()

    def _begin(self) -> None:
        self._open, self._size = _Open(self.records), self._size_at(self.records)


@dataclass
class _Open:
    """A shard that is being filled."""

    start: int
    records: int = 0
    path: str = ""
    digest: Any = field(default_factory=hashlib.sha256)
    parts: list[FilePart] = field(default_factory=list)
    _position: int = 0
    _line: int = 1

    def begin(self, path: str, position: int, line: int) -> None:
        self.path, self._position, self._line = path, position, line

    def end(self, position: int) -> None:
        if position > self._position:
            part = FilePart(path=self.path, start=self._position, end=position, first_line=self._line)
            self.parts.append(part)
            self._position = position

    def shard(self, index: int) -> Shard:
        sha256 = self.digest.hexdigest()
        return Shard(index=index, start=self.start, records=self.records, sha256=sha256, parts=tuple(self.parts))


class _HashThread:
    """Hashes in a thread of its own, in order (hashlib releases the GIL), holding a few blocks at most."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._batch: list[tuple[Any, Bytes]] = []
        self._batch_bytes = 0

    def update(self, digest: Any, content: Bytes) -> None:
        self._batch.append((digest, content))
        self._batch_bytes += len(content)
        if self._batch_bytes >= BATCH_BYTES:
            self._submit()

    def close(self) -> None:
        self._submit()
        self._thread.shutdown(wait=True)

    def _submit(self) -> None:
        if len(self._pending) >= BATCHES_IN_FLIGHT:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(_update, self._batch))
        self._batch, self._batch_bytes = [], 0


def _update(batch: list[tuple[Any, Bytes]]) -> None:
    for digest, content in batch:
        digest.update(content)
