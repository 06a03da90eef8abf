"""The shards' files as the merge reads them: in blocks or rows, each file checked against its manifest on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO

import orjson

from tasks.errors import RunError
from tasks.records import FileManifest, Json
from tasks.storage import COPY_BYTES, Storage


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The data files, or the errors files, of all shards, in order."""

    storage: Storage
    folder: str
    parts: Sequence[FileManifest]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def name(self, part: FileManifest) -> str:
        """The file's name in the storage."""
        return f"{self.folder}/{part.name}"

    def blocks(self, part: FileManifest, hasher: ThreadPoolExecutor) -> Iterator[bytes]:
        """The file's blocks; they are hashed by `hasher` while they are used and the next one is read.

        Raises RunError where the file is gone, and at its end where it is not what its manifest says.
        """
        own, size, rows = hashlib.sha256(), 0, 0
        with self._open(part) as source:
            block = source.read(COPY_BYTES)
            while block:
                hashing = hasher.submit(own.update, block)
                size += len(block)
                rows += block.count(b"\n")
                yield block
                block = source.read(COPY_BYTES)
                hashing.result()
        if (size, rows, own.hexdigest()) != (part.bytes, part.rows, part.sha256):
            raise RunError(
                f"{self.storage.root}/{self.name(part)} was changed after it was finished; run again: it will be "
                "generated again"
            )

    def row_batches(self, batch_bytes: int) -> Iterator[list[Json]]:
        """The parsed rows of all files, about so many bytes of them at a time; raises as `blocks` does."""
        with ThreadPoolExecutor(1, "sha256") as hasher:
            for part in self.parts:
                yield from _batches(self.blocks(part, hasher), batch_bytes)

    def _open(self, part: FileManifest) -> AbstractContextManager[IO[bytes]]:
        name = self.name(part)
        if self.storage.size(name) is None:
            raise RunError(f"{self.storage.root}/{name} is gone; run again: it will be generated again")
        return self.storage.open(name)


def _batches(blocks: Iterator[bytes], batch_bytes: int) -> Iterator[list[Json]]:
    rest = b""
    for block in blocks:
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        batch: list[Json] = []
        size = 0
        for line in lines:
            batch.append(orjson.loads(line))
            size += len(line)
            if size >= batch_bytes:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
