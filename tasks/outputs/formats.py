"""The formats of the merged files: what they are called, how they are written, and read again."""

from __future__ import annotations

import io
from itertools import islice

import orjson

from tasks.outputs.source import ShardFiles
from tasks.outputs.text import write_jsonl, write_zst
from tasks.records import FileManifest, Json
from tasks.storage import Storage

SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")


def suffix(file_format: str, compression: str | None) -> str:
    """The merged files' suffix, by `output.format` and `output.compression`."""
    if file_format == "parquet":
        return ".parquet"
    return ".jsonl.zst" if compression == "zst" else ".jsonl"


def write_merged(files: ShardFiles, name: str, compression: str | None) -> FileManifest:
    """Write the shards' rows as one file, in the format of the name's suffix; it appears when it is whole.

    Raises RunError naming a shard's file that is gone or is not what its manifest says.
    """
    if name.endswith(".parquet"):
        from tasks.outputs.table import write_parquet

        return write_parquet(files, name, "zstd" if compression == "zst" else "snappy")
    return write_zst(files, name) if name.endswith(".zst") else write_jsonl(files, name)


def first_rows(storage: Storage, name: str, count: int) -> list[Json]:
    """The first rows of a merged file."""
    with storage.open(name) as file:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            batches = pq.ParquetFile(file).iter_batches(batch_size=count)
            return [row for batch in islice(batches, 1) for row in batch.to_pylist()]
        if name.endswith(".zst"):
            import zstandard

            file = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
        return [orjson.loads(line) for line in islice(file, count)]


def stored_rows(storage: Storage, name: str) -> int | None:
    """The rows that the file itself says it has; None where its format does not tell."""
    if not name.endswith(".parquet"):
        return None
    import pyarrow.parquet as pq

    with storage.open(name) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)
