"""Lets shards owe their error rows again (`output.retry_errors`): what they name was mended, or a server is back.

This is before engines start, with the output folder locked. No sample is made again: a finished shard becomes one under
way, whose chunk holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import orjson

from tasks.dataset import read_shard
from tasks.records import Shard, ShardManifest
from tasks.shard_store import Row, ShardStore

_THREADS = 4


def retry_errors(store: ShardStore, shards: Iterable[Shard], whole: Mapping[int, ShardManifest]) -> int:
    """Drop the error rows of these shards; returns how many. `whole` are the finished ones, their files checked."""

    def drop(shard: Shard) -> int:
        manifest = whole.get(shard.index)
        if manifest is None:
            return _drop_from_chunks(store, shard)
        return _reopen(store, shard, manifest) if manifest.errors.rows else 0

    with ThreadPoolExecutor(_THREADS, "retry") as threads:
        return sum(threads.map(drop, shards))


def _reopen(store: ShardStore, shard: Shard, manifest: ShardManifest) -> int:
    """The manifest goes when the chunk is there: until then it is true."""
    store.write_chunk(shard, list(_samples(store, shard, manifest)))
    store.forget(shard, manifest)
    return manifest.errors.rows


def _samples(store: ShardStore, shard: Shard, manifest: ShardManifest) -> Iterator[Row]:
    digests = {record.original_index: record.digest for record in read_shard(shard)}
    cached = manifest.tally.cached_tokens  # of all of them: no row tells its own
    with store.storage.open(f"{store.folder}/{manifest.data.name}") as file:
        for line in file:
            row = orjson.loads(line)
            yield Row(digests[row["original_index"]], row, cached)
            cached = 0


def _drop_from_chunks(store: ShardStore, shard: Shard) -> int:
    rows = list(store.chunk_rows(shard))
    samples = [row for row in rows if not row.is_error]
    if len(samples) < len(rows):
        store.replace_chunks(shard, samples)
    return len(rows) - len(samples)
