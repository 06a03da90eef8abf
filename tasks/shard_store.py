"""The files of a run's shards: finished shards with their manifests, and the chunks of shards under way.

    shards/KEY/00012.jsonl, 00012.errors.jsonl, 00012.manifest.json      finished
    shards/KEY/00012/chunk-*.jsonl                                       under way

A chunk is written once and never changed. Its lines say which record (by the hash of its line) each row was made for,
so rows of an older version of the dataset are never taken for rows of this one; a torn last line is owed again.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from tasks.records import ErrorRow, FileManifest, Json, Shard, ShardManifest
from tasks.storage import Storage, sha256_of, write


@dataclass(frozen=True, slots=True)
class Row:
    """A finished row, of data.jsonl or errors.jsonl, and the record it was made for.

    `began` and `ended` (Unix time) are those of its request, and no chunk keeps them.
    """

    digest: str
    row: Json
    cached_tokens: int = 0
    began: float = 0.0
    ended: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """(original_index, sample_id): what makes a row the only one of its kind."""
        return self.row["original_index"], self.row["sample_id"]

    @property
    def is_error(self) -> bool:
        return "predict" not in self.row


class ShardStore:
    """The shards of one key in one output folder."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage = storage
        self.key = key
        self.folder = f"shards/{key}"

    def manifest(self, shard: Shard, n: int) -> ShardManifest | None:
        """The manifest of the finished shard, if it was made from this content. Its files are not looked at."""
        try:
            manifest = ShardManifest.model_validate_json(self.storage.read(self._manifest_name(shard)))
        except (FileNotFoundError, ValidationError):
            return None
        asked = (self.key, shard.index, shard.start, shard.records, shard.sha256, n)
        made = (manifest.key, manifest.index, manifest.start, manifest.records, manifest.sha256, manifest.n)
        return manifest if asked == made else None

    def damage(self, manifest: ShardManifest) -> str | None:
        """What is wrong with a finished shard's files, in words; None when they are whole."""
        for file in (manifest.data, manifest.errors):
            name = f"{self.folder}/{file.name}"
            size = self.storage.size(name)
            if size is None:
                return f"{name} is gone"
            if size != file.bytes:
                return f"{name} has {size} bytes, not the {file.bytes} it was finished with"
            etag = manifest.etags.get(file.name)
            if etag is not None and self.storage.etag(name) == etag:
                continue
            if sha256_of(self.storage, name) != file.sha256:
                return f"{name} was changed after it was finished"
        return None

    def chunk_rows(self, shard: Shard) -> Iterator[Row]:
        """The rows of a shard under way, in the order they were written. Lines that are not whole are passed over."""
        for name in self._chunks(shard):
            for line in self.storage.read(name).split(b"\n"):
                if (row := _parse_chunk_line(line)) is not None:
                    yield row

    def write_chunk(self, shard: Shard, rows: Sequence[Row]) -> None:
        """Add a chunk; it is there, whole, when this returns."""
        name = f"chunk-{time.time_ns() // 1_000_000:014d}-{uuid.uuid4().hex[:8]}.jsonl"
        write(self.storage, f"{self._chunk_folder(shard)}/{name}", b"".join(_chunk_line(row) for row in rows))

    def replace_chunks(self, shard: Shard, rows: Sequence[Row]) -> None:
        """Let these rows be all that a shard under way has."""
        old = self._chunks(shard)
        self.write_chunk(shard, rows)
        for name in old:
            self.storage.remove(name)

    def finish(self, shard: Shard, rows: Iterable[Row], facts: Json) -> ShardManifest:
        """Write the shard's files from all its rows, then the manifest that vouches for them, then drop the chunks.

        `facts` are the manifest's further fields. Rows may come in any order; each (original_index, sample_id) once.
        """
        ordered = sorted(rows, key=lambda row: row.place)
        data = self._write_rows(f"{shard.name}.jsonl", [r.row for r in ordered if not r.is_error])
        errors = self._write_rows(f"{shard.name}.errors.jsonl", [r.row for r in ordered if r.is_error])
        manifest = ShardManifest(
            key=self.key,
            index=shard.index,
            start=shard.start,
            records=shard.records,
            sha256=shard.sha256,
            data=data,
            errors=errors,
            etags={f.name: etag for f in (data, errors) if (etag := self.storage.etag(f"{self.folder}/{f.name}"))},
            **facts,
        )
        write(self.storage, self._manifest_name(shard), manifest.model_dump_json(indent=1).encode())
        self.storage.remove(self._chunk_folder(shard))
        return manifest

    def drop_chunks(self, shards: Iterable[Shard]) -> None:
        """What finished shards have left of theirs: a kill, or a store that was away, came before `finish` was done."""
        with ThreadPoolExecutor(4, "drop") as threads:
            list(threads.map(lambda shard: self.storage.remove(self._chunk_folder(shard)), shards))

    def replace_manifest(self, old: ShardManifest, new: ShardManifest) -> None:
        """Let a finished shard be vouched for by another manifest, then drop files that only the old one names."""
        write(self.storage, f"{self.folder}/{new.index:05d}.manifest.json", new.model_dump_json(indent=1).encode())
        for name in {old.data.name, old.errors.name} - {new.data.name, new.errors.name}:
            self.storage.remove(f"{self.folder}/{name}")

    def forget(self, shard: Shard, manifest: ShardManifest) -> None:
        """Let a finished shard be none any more: first the manifest goes, then the files that it vouched for."""
        for name in (
            self._manifest_name(shard),
            *(f"{self.folder}/{f.name}" for f in (manifest.data, manifest.errors)),
        ):
            self.storage.remove(name)

    def _chunks(self, shard: Shard) -> list[str]:
        folder = self._chunk_folder(shard)
        return [f"{folder}/{name}" for name in self.storage.names(folder) if name.startswith("chunk-")]

    def _write_rows(self, name: str, rows: Sequence[Json]) -> FileManifest:
        content = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
        write(self.storage, f"{self.folder}/{name}", content)
        return FileManifest(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), rows=len(rows))

    def _manifest_name(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}.manifest.json"

    def _chunk_folder(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}"


def _chunk_line(row: Row) -> bytes:
    """A row that JSON cannot hold (a label nested hundreds deep) becomes an error row, and holds up no other."""
    try:
        return _line_of(row, row.row)
    except orjson.JSONEncodeError as error:
        refused = ErrorRow(*row.place, "row_not_writable", f"the sample cannot be written as JSON: {error}")
        return _line_of(row, refused.row())


def _line_of(row: Row, content: Json) -> bytes:
    line = {"digest": row.digest, "cached_tokens": row.cached_tokens, "row": content}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _parse_chunk_line(line: bytes) -> Row | None:
    try:
        parsed: Any = orjson.loads(line)
        row = Row(parsed["digest"], parsed["row"], parsed["cached_tokens"])
        _ = row.place
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return row
