"""A model on S3, mirrored to a local folder: in parallel ranges, verified by ETag or sha256, only what changed.

A killed run keeps the files that were whole; those under way (a few, they are fetched one after the other) start again.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.config import ModelConfig
from tasks.downloads.hashes import HashCache
from tasks.downloads.local import folder_identity
from tasks.downloads.progress import shown
from tasks.downloads.repo_cache import hold, write_atomically
from tasks.downloads.selection import needed_files, require_complete, require_names
from tasks.errors import RunError
from tasks.records import ModelManifest
from tasks.run_log import log
from tasks.s3_access import open_s3, s3_errors
from tasks.storage import open_range

_FIELD = "model.source"
_RANGE_BYTES = 16 << 20
_RANGES_AT_ONCE = 16
_STATE = ".mirror.json"
_PART = ".part"
_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Mirrored:
    """What the local copy was when it was verified."""

    etag: str
    size: int
    sha256: str


def mirror_from_s3(config: ModelConfig, dummy_weights: bool) -> ModelManifest:
    """Bring the local copy up to date. Two runs at once download once.

    Raises RunError for credentials, a bucket or a model that are missing or refused, and OSError for a network that
    fails. The identity is that of the same files in a local folder.
    """
    fs, base = open_s3(config.source, _FIELD)
    base = base.rstrip("/")
    with s3_errors(config.source, _FIELD):
        listing = _list(fs, base)
    if not listing:
        raise RunError(f"{_FIELD}: {config.source} has no files: check the folder's name")
    wanted = _wanted(listing, config, dummy_weights)
    folder = _cache_dir(config) / _folder_name(fs, base)
    with hold(folder.with_name(f"{folder.name}.lock"), f"another run mirrors {config.source}: waiting for it"):
        mirror = _Mirror(fs, base, folder, config.source)
        mirror.bring(wanted)
        require_complete(folder, config.source, dummy_weights)
        identity = folder_identity(folder, config, dummy_weights)
    return ModelManifest(source=config.source, path=str(folder), identity=identity)


class _Mirror:
    def __init__(self, fs: Any, base: str, folder: Path, source: str) -> None:
        self.fs = fs
        self.base = base
        self.folder = folder
        self.source = source
        self.known = HashCache()
        self.state = _load_state(folder)

    def bring(self, wanted: list[_Object]) -> None:
        """Fetch what is missing or changed, and remove what S3 has no more: vLLM would load it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stale = [item for item in wanted if not self._is_current(item)]
        self._remove_all_but({item.name for item in wanted})
        if stale:
            self._require_space(stale)
            with shown(self.source, sum(item.size for item in stale), lambda: self._bytes_here(stale)):
                self._fetch_all(stale)
        self.known.save()

    def _fetch_all(self, items: list[_Object]) -> None:
        with ThreadPoolExecutor(_RANGES_AT_ONCE) as ranges, s3_errors(self.source, _FIELD):
            for item in items:
                self._fetch_verified(item, ranges)

    def _fetch_verified(self, item: _Object, ranges: ThreadPoolExecutor) -> None:
        part = self._local(item.name + _PART)
        part.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            self._fetch(item, part, ranges)
            if self._is_right(item, part):
                return self._keep(item, part)
            log.warning("%s came damaged: its hash is not S3's; fetching it again", item.name)
        raise ConnectionError(
            f"{_FIELD}: {self.source}/{item.name} keeps arriving with another hash than S3 names: was it changed "
            "meanwhile? Run again"
        )

    def _fetch(self, item: _Object, part: Path, ranges: ThreadPoolExecutor) -> None:
        with part.open("wb") as file:

            def fetch(start: int) -> None:
                end = min(start + _RANGE_BYTES, item.size)
                content = self.fs.cat_file(f"{self.base}/{item.name}", start=start, end=end)
                os.pwrite(file.fileno(), content, start)

            list(ranges.map(fetch, range(0, item.size, _RANGE_BYTES)))

    def _is_right(self, item: _Object, part: Path) -> bool:
        if part.stat().st_size != item.size:
            return False
        bucket, key = f"{self.base}/{item.name}".split("/", 1)
        head = self.fs.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        sha256 = head.get("ChecksumSHA256")
        if sha256 and "-" not in sha256:
            return base64.b64decode(sha256).hex() == self.known.sha256(part)
        if head.get("ServerSideEncryption", "AES256") != "AES256":
            return True  # encrypted by a key of KMS, the ETag is no hash of the content
        return self._has_etag(item, part, bucket, key)

    def _has_etag(self, item: _Object, part: Path, bucket: str, key: str) -> bool:
        match = re.fullmatch(r"([0-9a-f]{32})(?:-(\d+))?", item.etag)
        if match is None:
            log.info("%s: S3 names no hash of it; only its size was checked", item.name)
            return True
        if match[2] is None:
            return _md5(part).hex() == item.etag
        first = self.fs.call_s3("head_object", Bucket=bucket, Key=key, PartNumber=1)["ContentLength"]
        if -(-item.size // first) != int(match[2]):
            log.info("%s: its parts on S3 differ in size; only its size was checked", item.name)
            return True
        return _etag_of_parts(part, first) == item.etag

    def _keep(self, item: _Object, part: Path) -> None:
        self.state[item.name] = _Mirrored(item.etag, item.size, self.known.sha256(part))
        self.known.moved(part, self._local(item.name))
        rows = {name: asdict(entry) for name, entry in self.state.items()}
        write_atomically(self.folder / _STATE, orjson.dumps(rows))

    def _is_current(self, item: _Object) -> bool:
        path, entry = self._local(item.name), self.state.get(item.name)
        if entry is None or (entry.etag, entry.size) != (item.etag, item.size) or not path.is_file():
            return False
        if path.stat().st_size == item.size and self.known.sha256(path) == entry.sha256:
            return True
        log.warning("%s in %s is damaged: fetching it again", item.name, self.folder)
        return False

    def _remove_all_but(self, names: set[str]) -> None:
        for path in self.folder.rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in {*names, _STATE}:
                path.unlink()

    def _require_space(self, items: list[_Object]) -> None:
        needed, free = sum(item.size for item in items), shutil.disk_usage(self.folder).free
        if needed > free:
            raise RunError(
                f"model.cache_dir: {self.source} needs {needed / 1e9:.1f} GB in {self.folder.parent}, which has "
                f"{free / 1e9:.1f} GB free: free some, or set another folder"
            )

    def _bytes_here(self, items: list[_Object]) -> int:
        paths = [path for item in items for path in (self._local(item.name), self._local(item.name + _PART))]
        return sum(path.stat().st_blocks * 512 for path in paths if path.exists())

    def _local(self, name: str) -> Path:
        return self.folder / name


def _list(fs: Any, base: str) -> list[_Object]:
    found = fs.find(base, detail=True)
    return [
        _Object(path[len(base) + 1 :], entry["size"], str(entry.get("ETag", "")).strip('"'))
        for path, entry in found.items()
        if entry["type"] == "file" and path.startswith(f"{base}/") and ".." not in path.split("/")
    ]


def _wanted(listing: list[_Object], config: ModelConfig, dummy_weights: bool) -> list[_Object]:
    by_name = {item.name: item for item in listing}
    require_names(by_name, config.source, dummy_weights)
    return [by_name[name] for name in needed_files(by_name, config, dummy_weights)]


def _cache_dir(config: ModelConfig) -> Path:
    # Not in the Hugging Face cache by default: its tools take every folder in it for a hub model.
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = config.cache_dir or str(Path(home, "datagen-flow", "models"))
    return Path(chosen).expanduser().absolute()


def _folder_name(fs: Any, base: str) -> str:
    """Readable, and another one for the same name at another endpoint."""
    place = hashlib.sha256(f"{fs.s3.meta.endpoint_url}\0{base}".encode()).hexdigest()[:8]
    return f"s3--{re.sub(r'[^A-Za-z0-9._-]+', '--', base)}--{place}"


def _load_state(folder: Path) -> dict[str, _Mirrored]:
    try:
        rows = orjson.loads((folder / _STATE).read_bytes())
        return {name: _Mirrored(**row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _md5(path: Path, start: int = 0, length: int | None = None) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    for block in open_range(str(path), start, path.stat().st_size if length is None else start + length):
        digest.update(block)
    return digest.digest()


def _etag_of_parts(path: Path, part_bytes: int) -> str:
    """The ETag of an object uploaded in parts of this size: the md5 of the parts' md5s, and their number."""
    digests = [_md5(path, start, part_bytes) for start in range(0, path.stat().st_size, part_bytes)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"
