"""The same records as a file of each format."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tasks.config import DatasetConfig
from tasks.dataset import read_shard
from tasks.records import BadRecord, DatasetManifest, Json, Record
from tasks.split_dataset import split

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv")


def texts(count: int) -> list[Json]:
    """Records of text only, which every format can hold: quotes, commas, newlines, other scripts, nothing at all."""
    odd = ["plain", 'a "quoted", thing', "two\nlines", "", "数据 🚀", " spaces "]
    return [{"id": f"r{n}", "prompt": f"question {n}", "note": odd[n % len(odd)]} for n in range(count)]


def write_table(path: Path, rows: list[Json], row_group_size: int | None = None) -> Path:
    """Write the rows in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(b"".join(orjson.dumps(row) + b"\n" for row in rows)))
    return path


def split_path(path: Path | str, shard_size: int | None = None, limit: int | None = None) -> DatasetManifest:
    return split(DatasetConfig(path=str(path), shard_size=shard_size, limit=limit), n=1)


def read_all(manifest: DatasetManifest) -> list[Record | BadRecord]:
    return [record for shard in manifest.shards for record in read_shard(shard)]


def fields_of(manifest: DatasetManifest) -> list[Json]:
    """The fields of all records, none of which may be bad."""
    records = read_all(manifest)
    assert [record.original_index for record in records] == list(range(len(records)))
    assert all(isinstance(record, Record) for record in records)
    return [record.fields for record in records if isinstance(record, Record)]
