"""A shard under way: which samples it owes, which are made, and its checkpoints."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tasks.config import GenerateConfig
from tasks.dataset import read_shard, verify_shard
from tasks.records import BadRecord, Json, Record, Shard, ShardManifest, Span
from tasks.shard_store import Row, ShardStore
from tasks.tally import grading_key, tally_rows


@dataclass(frozen=True, slots=True)
class Owed:
    """Samples of one record that are still to be made."""

    record: Record | BadRecord
    sample_ids: tuple[int, ...]


class ShardWork:
    """One shard, from its first look at the chunks to its manifest.

    `open`, `next_owed`, `checkpoint` and `finish` do file work and are called from threads; `add` from the event loop.
    """

    def __init__(self, shard: Shard, config: GenerateConfig, store: ShardStore, engine: str) -> None:
        self.shard = shard
        self.failed = False
        self.write_failures = 0
        self.lines_read = 0
        self.last_checkpoint = time.monotonic()
        self._config = config
        self._store = store
        self._engine = engine
        self._n = config.sampling.n
        self._have: dict[tuple[int, int], str] = {}
        self._digests: dict[int, str] = {}
        self._pending: list[Row] = []
        self._made = 0
        self._resumed = 0
        self._started_at = time.time()
        self._timeline: list[Span] = []
        self._write = threading.Lock()

    def open(self) -> ShardManifest | None:
        """Check the input against the shard's hash, before any of it is used, and look at what the chunks hold.

        Returns the manifest of a shard that is finished: its engine died before it could tell. Raises InputChanged.
        """
        verify_shard(self.shard, self._count_line)
        manifest = self._store.manifest(self.shard, self._n)
        if manifest is not None and self._store.damage(manifest) is None:
            return manifest
        self._have = {row.place: row.digest for row in self._store.chunk_rows(self.shard)}
        self._owed = self._iterate()
        return None

    def next_owed(self, count: int) -> list[Owed]:
        """The next so many records with owed samples; empty at the shard's end."""
        return list(islice(self._owed, count))

    def add(self, row: Row) -> None:
        """A row is made."""
        self._pending.append(row)
        self._made += 1

    @property
    def records(self) -> range:
        """The original_index of each record."""
        return range(self.shard.start, self.shard.start + self.shard.records)

    @property
    def complete(self) -> bool:
        """Every sample is made. False until the last record has been read."""
        return len(self._digests) == self.shard.records and self._made == self.shard.records * self._n

    @property
    def dirty(self) -> bool:
        """There are rows that no chunk holds."""
        return bool(self._pending)

    def checkpoint(self) -> None:
        """Write what is made as a chunk."""
        with self._write:
            rows = list(self._pending)
            self.last_checkpoint = time.monotonic()
            if not rows:
                return
            self._store.write_chunk(self.shard, rows)
            del self._pending[: len(rows)]  # only now: what could not be written is written later
            self._timeline += spans_of(rows, self._engine)

    def finish(self) -> ShardManifest:
        """Checkpoint, then make the chunks one ordered shard. The rows are read back: what is on disk counts."""
        self.checkpoint()
        rows = {
            row.place: row
            for row in self._store.chunk_rows(self.shard)
            if self._digests.get(row.place[0]) == row.digest and row.place[1] < self._n
        }
        if len(rows) != self.shard.records * self._n:
            raise OSError(f"shard {self.shard.name}: its chunks hold {len(rows)} rows of {self._made} written")
        return self._store.finish(self.shard, rows.values(), self._facts(list(rows.values())))

    def _iterate(self) -> Iterator[Owed]:
        for record in read_shard(self.shard):
            index = record.original_index
            self._count_line()
            self._digests[index] = record.digest
            missing = tuple(s for s in range(self._n) if self._have.get((index, s)) != record.digest)
            self._made += self._n - len(missing)
            self._resumed += self._n - len(missing)
            if missing:
                yield Owed(record, missing)

    def _count_line(self) -> None:
        self.lines_read += 1

    def _facts(self, rows: list[Row]) -> Json:
        validation = self._config.validation
        rows.sort(key=lambda row: row.place)
        tally = tally_rows((r.row for r in rows if not r.is_error), (r.row for r in rows if r.is_error), validation)
        tally.cached_tokens = sum(row.cached_tokens for row in rows)
        return {
            "n": self._n,
            "tally": tally,
            "resumed_samples": self._resumed,
            "engine": self._engine,
            "started_at": self._started_at,
            "seconds": time.time() - self._started_at,
            "grading": grading_key(validation),
            "timeline": tuple(self._timeline),
        }


def spans_of(rows: Iterable[Row], engine: str) -> Iterator[Span]:
    """When the tokens of these rows were made: a span for those that took about equally long (up to twice as long)."""
    groups: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row.row.get("completion_tokens"):
            groups[math.frexp(row.ended - row.began)[1]].append(row)
    for group in groups.values():
        tokens = sum(row.row["completion_tokens"] for row in group)
        start = sum(row.began * row.row["completion_tokens"] for row in group) / tokens
        end = sum(row.ended * row.row["completion_tokens"] for row in group) / tokens
        yield Span(engine=engine, start=start, seconds=end - start, completion_tokens=tokens)
