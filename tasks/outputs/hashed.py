"""A file that knows the hash and the size of what was written to it."""

from __future__ import annotations

import hashlib
import io
from typing import IO, Any

from tasks.records import FileManifest


class HashedFile(io.RawIOBase):
    """Passes on what is written; closing it leaves the file below open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._file.write(content)
        self._digest.update(content)
        self._size += len(content)
        return len(content)

    def manifest(self, name: str, rows: int) -> FileManifest:
        """What the file holds by now."""
        return FileManifest(name=name, bytes=self._size, sha256=self._digest.hexdigest(), rows=rows)
