"""A model's folder in the Hugging Face cache: blobs by their hash, snapshots of links to them, refs to commits.

Both downloaders fill it, and huggingface_hub reads it: changing the downloader fetches nothing twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from tasks.run_log import log

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a hub model. `oid` is its sha256 (large files) or its git blob's sha1; `xet`: held by Xet storage."""

    name: str
    size: int
    oid: str
    xet: bool = False


def default_cache_dir() -> Path:
    """The Hugging Face cache, by its usual environment variables."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(home) if home else cache / "huggingface").expanduser() / "hub"


class RepoCache:
    """The cached files of one model. Nothing is created before something is written."""

    def __init__(self, cache_dir: Path, repo_id: str) -> None:
        self.folder = cache_dir / f"models--{repo_id.replace('/', '--')}"
        self.blobs = self.folder / "blobs"

    def blob(self, file: RemoteFile) -> Path:
        """Where the file's verified content is kept."""
        return self.blobs / file.oid

    def snapshot(self, commit: str) -> Path:
        """The model's folder at a commit, as vLLM opens it."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision was when last downloaded; a commit is itself."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            return (self.folder / "refs" / revision).read_text().strip()
        except OSError:
            return None

    def listing(self, commit: str) -> list[RemoteFile] | None:
        """The files of a commit, where they were listed before: a commit does not change."""
        try:
            rows = orjson.loads(self._listing(commit).read_bytes())
            return [RemoteFile(**row) for row in rows]
        except (OSError, ValueError, TypeError):
            return None

    def keep_listing(self, commit: str, files: Iterable[RemoteFile]) -> None:
        """Keep the listing of a commit; in a cache that cannot be written, do without."""
        with contextlib.suppress(OSError):
            write_atomically(self._listing(commit), orjson.dumps([asdict(file) for file in files]))

    def publish(self, commit: str, files: Iterable[RemoteFile], revision: str) -> None:
        """Link the snapshot's names to their blobs, then let the revision name the commit. Writes only what differs."""
        for file in files:
            self._link(self.snapshot(commit) / file.name, self.blob(file))
        if self.commit_of(revision) != commit:
            with contextlib.suppress(OSError):
                write_atomically(self.folder / "refs" / revision, commit.encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: one process downloads, others wait and then find the files. Ends with the process."""
        path = self.folder.parent / ".locks" / self.folder.name / "download.lock"
        with hold(path, f"another run downloads into {self.folder}: waiting for it"):
            yield

    def _listing(self, commit: str) -> Path:
        return self.folder / "listings" / f"{commit}.json"

    def _link(self, link: Path, blob: Path) -> None:
        if link.exists() and link.resolve() == blob.resolve():
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
        temporary.symlink_to(os.path.relpath(blob, link.parent))
        temporary.replace(link)


@contextlib.contextmanager
def hold(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file; logs `waiting` once where another process holds it, and waits as long as it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content)
    temporary.replace(path)
