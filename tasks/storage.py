"""Files of a run, on local disk or s3:// alike: whole reads, atomic writes, listing, removal.

A name appears only when its content is complete: on disk by a temporary file and a rename, on S3 as objects do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

import fsspec

COPY_BYTES = 8 << 20
FROM_START_TO_END: dict[str, Any] = {"cache_type": "background", "cache_options": {"maxblocks": 3}}
"""How fsspec reads a remote file of which all is wanted: the next block comes while this one is used."""
_TEMPORARY = ".tmp-"


class Storage(Protocol):
    """A folder. Names are relative to it and use `/`."""

    root: str

    def read(self, name: str) -> bytes:
        """The whole content. Raises FileNotFoundError."""

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file to read from its start. Raises FileNotFoundError."""

    def writer(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file that appears, whole, when the block ends without an exception, and not at all otherwise."""

    def append(self, target: IO[bytes], name: str, size: int) -> bool:
        """Have the store itself add a file of `size` bytes to the one being written; False where it can't."""

    def names(self, folder: str) -> list[str]:
        """Names of the files right below `folder`, sorted; none where there is no such folder."""

    def size(self, name: str) -> int | None:
        """Bytes, or None where there is no such file."""

    def etag(self, name: str) -> str | None:
        """What the store changes with a file's content; None where it has nothing of the kind, or there is no file."""

    def remove(self, name: str) -> None:
        """Remove a file or folder with all below it; nothing happens where there is none."""


def open_storage(root: str) -> Storage:
    """The folder at a local path or `s3://bucket/folder`; a local one need not exist yet."""
    if is_remote(root):  # which the config takes for S3 only
        from tasks.s3_storage import S3Storage

        return S3Storage(root)
    return LocalStorage(root)


def is_remote(path: str) -> bool:
    """Whether the path names an object store rather than this machine's disk."""
    return "://" in path and not path.startswith("file://")


def write(storage: Storage, name: str, content: bytes) -> None:
    """Write a whole file, atomically."""
    with storage.writer(name) as file:
        file.write(content)


def sha256_of(storage: Storage, name: str) -> str:
    """Hex sha256 of a file's content, in constant memory. Raises FileNotFoundError."""
    digest = hashlib.sha256()
    with storage.open(name) as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


class LocalStorage:
    """A folder on a disk of this machine."""

    def __init__(self, root: str) -> None:
        self.root = str(Path(root.removeprefix("file://")).expanduser().absolute())

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        return self._path(name).open("rb")

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[IO[bytes]]:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:8]}-{path.name}")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def drop_unfinished(self) -> None:
        """Remove what killed writers left behind, in the folder and among its shards; nobody may be writing."""
        for pattern in (f"{_TEMPORARY}*", f"*/*/{_TEMPORARY}*", f"*/*/*/{_TEMPORARY}*"):
            for left in Path(self.root).glob(pattern):
                left.unlink(missing_ok=True)

    def append(self, target: IO[bytes], name: str, size: int) -> bool:
        del target, name, size
        return False

    def names(self, folder: str) -> list[str]:
        try:
            entries = list(os.scandir(self._path(folder)))
        except FileNotFoundError:
            return []
        return sorted(e.name for e in entries if e.is_file() and not e.name.startswith(_TEMPORARY))

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            return None

    def etag(self, name: str) -> str | None:
        del name
        return None

    def remove(self, name: str) -> None:
        path = self._path(name)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return Path(self.root, name)


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec filesystem of a remote path, and the path there.

    S3 is asked anew what it holds each time, and waited for: a restart of some minutes is no error.
    """
    if path.startswith("s3://"):
        from tasks.s3_patience import patient_filesystem

        return patient_filesystem(path)
    fs, place = fsspec.core.url_to_fs(path)
    return fs, str(place)


def open_range(path: str, start: int, end: int) -> Iterator[bytes]:
    """The bytes [start, end) of a local or remote file, in blocks of at most COPY_BYTES.

    Raises FileNotFoundError; yields less than asked for where the file is shorter now.
    """
    # Nothing is read ahead of a remote file: each read asks for the bytes it needs, and no more.
    with open_input(path, cache_type="none") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (block := file.read(min(COPY_BYTES, left))):
            left -= len(block)
            yield block


def open_input(path: str, cache_type: str = "readahead") -> IO[bytes]:
    """An input file, local or remote, to read and seek in.

    `cache_type` is fsspec's, for a remote one: "background" to read it from start to end.
    """
    if is_remote(path):
        fs, place = filesystem(path)
        options = FROM_START_TO_END if cache_type == "background" else {"cache_type": cache_type}
        return cast("IO[bytes]", fs.open(place, "rb", block_size=COPY_BYTES, **options))
    return Path(path.removeprefix("file://")).expanduser().open("rb")
