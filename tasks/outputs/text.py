"""JSON lines, as they are or compressed.

Shards are contiguous and ordered, so merging copies bytes: on S3 large objects are copied by S3 itself and read here
only to be hashed. Memory stays at a few blocks however large the run is.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import IO, cast

from tasks.outputs.hashed import HashedFile
from tasks.outputs.source import ShardFiles
from tasks.records import FileManifest

_MOST_THREADS = 4


def write_jsonl(files: ShardFiles, name: str) -> FileManifest:
    """The files one after another. The merged file's hash is made in the pass that checks the shards'."""
    storage, whole = files.storage, hashlib.sha256()
    with ThreadPoolExecutor(2, "sha256") as hashers, storage.writer(name) as target:
        for part in files.parts:
            appended = storage.append(target, files.name(part), part.bytes)
            for block in files.blocks(part, hashers):
                hashing = hashers.submit(whole.update, block)
                if not appended:
                    target.write(block)
                hashing.result()
    size = sum(part.bytes for part in files.parts)
    return FileManifest(name=name, bytes=size, sha256=whole.hexdigest(), rows=files.rows)


def write_zst(files: ShardFiles, name: str) -> FileManifest:
    """The same lines as one Zstandard frame."""
    import zstandard

    compressor = zstandard.ZstdCompressor(threads=min(_MOST_THREADS, os.cpu_count() or 1), write_checksum=True)
    with ThreadPoolExecutor(1, "sha256") as hasher, files.storage.writer(name) as file:
        target = HashedFile(file)
        with compressor.stream_writer(cast("IO[bytes]", target), closefd=False) as packed:
            for part in files.parts:
                for block in files.blocks(part, hasher):
                    packed.write(block)
        return target.manifest(name, files.rows)
