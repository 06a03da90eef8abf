"""Parquet: typed columns, row groups of a size that readers like, in constant memory.

The rows are read twice: once for the columns' types, which only all of them tell, and once to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.outputs.columns import ERROR_COLUMNS, SAMPLE_COLUMNS, Columns, DoesNotFit, find_columns
from tasks.outputs.hashed import HashedFile
from tasks.outputs.source import ShardFiles
from tasks.records import FileManifest

BATCH_BYTES = 4 << 20
ROW_GROUP_BYTES = 32 << 20
MOST_GROUP_ROWS = 1 << 20


def write_parquet(files: ShardFiles, name: str, codec: str) -> FileManifest:
    """The rows as one table. `codec` is Parquet's name of the compression."""
    first = ERROR_COLUMNS if name.startswith("errors") else SAMPLE_COLUMNS
    columns = find_columns(files.row_batches(BATCH_BYTES), first)
    while True:
        try:
            return _write(files, name, columns, codec)
        except DoesNotFit as misfit:
            # Such as a whole number that no double holds, in a column of doubles.
            columns = columns.with_text(misfit.column)


def _write(files: ShardFiles, name: str, columns: Columns, codec: str) -> FileManifest:
    with files.storage.writer(name) as file:
        target = HashedFile(file)
        with pq.ParquetWriter(target, columns.schema, compression=codec) as writer:
            for table in _row_groups(files, columns):
                writer.write_table(table, row_group_size=table.num_rows)
        return target.manifest(name, files.rows)


def _row_groups(files: ShardFiles, columns: Columns) -> Iterator[Any]:
    batches: list[Any] = []
    size = rows = 0
    for batch in map(columns.batch, files.row_batches(BATCH_BYTES)):
        batches.append(batch)
        size += batch.nbytes
        rows += batch.num_rows
        if size >= ROW_GROUP_BYTES or rows >= MOST_GROUP_ROWS:
            yield pa.Table.from_batches(batches)
            batches, size, rows = [], 0, 0
    if batches:
        yield pa.Table.from_batches(batches)
