"""The shards' files, one after another, as data.jsonl and errors.jsonl.

Shards are contiguous and ordered, so merging copies bytes. Each shard's file is checked against its manifest on the way
(size, rows, sha256) and the merged file's hash is made in the same pass, the two hashes in threads beside the copying.
Memory stays at a few blocks however large the run is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import IO

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from tasks.errors import RunError
from tasks.records import FileManifest, ShardManifest, Tally
from tasks.retries import retried
from tasks.storage import COPY_BYTES, Storage, open_storage

DATA, ERRORS = "data.jsonl", "errors.jsonl"


class MergedFiles(BaseModel):
    """The merged files, by name relative to the output folder, and the sum of the shards' tallies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: FileManifest
    errors: FileManifest
    tally: Tally


@task(
    name="merge_shards",
    description="Merge the shards' files into data.jsonl and errors.jsonl, checking each against its manifest.",
    tags=["io"],
    cache_policy=NO_CACHE,
    **retried(3, first_delay=5),
)
def merge_shards(output_path: str, shards_folder: str, manifests: Sequence[ShardManifest]) -> MergedFiles:
    """`merge` of the shards in `shards_folder`, relative to the run's output folder."""
    return merge(open_storage(output_path), shards_folder, manifests)


def merge(storage: Storage, shards_folder: str, manifests: Sequence[ShardManifest]) -> MergedFiles:
    """Write data.jsonl and errors.jsonl from the shards' files, in the order of `manifests`.

    Raises RunError naming a shard's file that is gone or is not what its manifest says; nothing is written then.
    """
    tally = Tally()
    for manifest in manifests:
        tally.add(manifest.tally)
    return MergedFiles(
        data=_concatenate(storage, shards_folder, [m.data for m in manifests], DATA),
        errors=_concatenate(storage, shards_folder, [m.errors for m in manifests], ERRORS),
        tally=tally,
    )


def _concatenate(storage: Storage, folder: str, parts: Sequence[FileManifest], name: str) -> FileManifest:
    whole = hashlib.sha256()
    with ThreadPoolExecutor(2, thread_name_prefix="sha256") as hashers, storage.writer(name) as target:
        for part in parts:
            _copy(storage, f"{folder}/{part.name}", part, target, whole, hashers)
    size, rows = sum(part.bytes for part in parts), sum(part.rows for part in parts)
    return FileManifest(name=name, bytes=size, sha256=whole.hexdigest(), rows=rows)


def _copy(
    storage: Storage,
    name: str,
    expected: FileManifest,
    target: IO[bytes],
    whole: hashlib._Hash,
    hashers: Executor,
) -> None:
    """Append a shard's file to `target`; each block is hashed twice while it is written and the next one is read."""
    own, size, rows = hashlib.sha256(), 0, 0
    with _open(storage, name) as source:
        block = source.read(COPY_BYTES)
        while block:
            hashing = [hashers.submit(digest.update, block) for digest in (own, whole)]
            target.write(block)
            size += len(block)
            rows += block.count(b"\n")
            block = source.read(COPY_BYTES)
            wait(hashing)
    if (size, rows, own.hexdigest()) != (expected.bytes, expected.rows, expected.sha256):
        raise RunError(
            f"{storage.root}/{name} was changed after it was finished; run again: it will be generated again"
        )


def _open(storage: Storage, name: str) -> AbstractContextManager[IO[bytes]]:
    try:
        return storage.open(name)
    except FileNotFoundError:
        raise RunError(f"{storage.root}/{name} is gone; run again: it will be generated again") from None
