"""Hashes of files, remembered by path, size and time of change, so that a rerun does not read a model again.

A file changed behind its time stamp (a failing disk, a restored mtime) is not noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from tasks.storage import COPY_BYTES

_LARGE_BYTES = 16 << 20
_THREADS = 4


def has_oid(path: Path, oid: str, known: HashCache) -> bool:
    """Whether the file's content is the one the hub knows by `oid`: 64 digits are a sha256, 40 a git blob's sha1."""
    return (known.sha256(path) if len(oid) == 64 else _git_sha1(path)) == oid


class HashCache:
    """sha256 of files. Large ones' are kept in a file below XDG_CACHE_HOME (~/.cache); small ones' are read anew."""

    def __init__(self) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = Path(home, "datagen-flow", "hashes.json")
        self._known = self._load()
        self._lock = threading.Lock()
        self._new: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        """Hex sha256 of the file, in constant memory. Raises FileNotFoundError."""
        place = _place(path)
        known = self._known.get(place)
        if known is not None:
            return known
        digest = _sha256(path)
        if path.stat().st_size >= _LARGE_BYTES and _place(path) == place:
            self._remember(place, digest)
        return digest

    def sha256_all(self, paths: Iterable[Path]) -> list[str]:
        """The hashes of several files, in their order, some at once."""
        with ThreadPoolExecutor(_THREADS) as threads:
            digests = list(threads.map(self.sha256, paths))
        self.save()
        return digests

    def moved(self, old: Path, new: Path) -> None:
        """Rename a file, and keep what is known of it."""
        digest = self._known.get(_place(old))
        old.replace(new)
        if digest is not None:
            self._remember(_place(new), digest)

    def save(self) -> None:
        """Write what is new. A cache that cannot be written costs time later, and nothing else."""
        with self._lock, contextlib.suppress(OSError):
            if not self._new:
                return
            # Another run may have written since: add to what is there now, and drop files that are gone.
            merged = {place: digest for place, digest in self._load().items() if _is_current(place)} | self._new
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}")
            temporary.write_bytes(orjson.dumps(merged))
            temporary.replace(self._path)
            self._new.clear()

    def _remember(self, place: str, digest: str) -> None:
        with self._lock:
            self._known[place] = self._new[place] = digest

    def _load(self) -> dict[str, str]:
        try:
            known = orjson.loads(self._path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return known if isinstance(known, dict) else {}


def _place(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"


def _is_current(place: str) -> bool:
    return Path(place.rsplit(":", 2)[0]).exists()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _git_sha1(path: Path) -> str:
    # git names a blob by the sha1 of a header and the content; only small files are known to the hub by it.
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
