"""The formats by their suffixes: how a file is scanned for records, and a part of it read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.inputs.csv_rows import read_csv, scan_csv
from tasks.inputs.line import Line
from tasks.inputs.lines import read_lines, scan_lines
from tasks.inputs.parquet import Columns, read_parquet, scan_parquet
from tasks.inputs.shards import ShardCutter
from tasks.records import FilePart


def scan_file(path: str, cutter: ShardCutter, columns: Columns = None) -> int:
    """Feed a file to the cutter, until its end or the limit; returns the blank lines met.

    `columns` are those of Parquet that count; None: all. Raises RunError for a file that cannot be read.
    """
    if path.endswith(".parquet"):
        return scan_parquet(path, cutter, columns)
    if path.endswith(".csv"):
        return scan_csv(path, cutter)
    return scan_lines(path, cutter)


def read_part(part: FilePart, columns: Columns, digest: Any) -> Iterator[Line]:
    """The part's records in order; at the end, all that the shard's hash depends on has been counted to the digest.

    Raises InputChanged or FileNotFoundError where records are gone.
    """
    if part.path.endswith(".parquet"):
        return read_parquet(part, columns, digest)
    if part.path.endswith(".csv"):
        return read_csv(part, digest)
    return read_lines(part, digest)
