"""Parquet: shards are ranges of rows, read by the needed columns along the row groups.

Reaching a row means decoding its row group up to it; readers that stopped where a shard ended go on for the next one.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

from tasks.errors import InputChanged, RunError
from tasks.inputs.idle import IdleReaders
from tasks.inputs.line import Line
from tasks.inputs.parquet_values import in_microseconds, plain_values
from tasks.inputs.rows import content_of
from tasks.inputs.shards import ShardCutter
from tasks.records import FilePart, Json
from tasks.storage import COPY_BYTES, open_input

BUFFER_BYTES = 1 << 20
MOST_BATCH_ROWS = 1024
PANDAS_INDEX = re.compile(r"__index_level_\d+__")

_UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, NotImplementedError)
"""What Arrow raises for values that Python has none for: a date beyond year 9999, an unknown time zone."""

Columns = tuple[str, ...] | None


def count_rows(path: str) -> int:
    """From the file's footer. Raises RunError where it is no Parquet file."""
    with contextlib.closing(_Rows(path)) as rows:
        return rows.count


def scan_parquet(path: str, cutter: ShardCutter, columns: Columns) -> int:
    """Feed a Parquet file to the cutter, until its end or the limit; returns 0, for it has no blank lines.

    The input's hash takes the whole file, or the used rows of one that the limit cuts. Raises RunError where it is no
    Parquet file.
    """
    with contextlib.closing(_Rows(path, columns)) as rows:
        cut_short = cutter.limit is not None and rows.count > cutter.limit - cutter.records
        if not cut_short:
            _hash_file(path, cutter)
        cutter.start_file(path)
        for _, content in rows.read(rows.count):
            content += b"\n"
            cutter.add(content, 1)
            if cut_short:
                cutter.hash_input(content)
            if not cutter.room:
                cutter.cut(rows.position, rows.position + 1)
                if cutter.finished:
                    return 0
        cutter.end_file(rows.position)
    return 0


def read_parquet(part: FilePart, columns: Columns, digest: Any) -> Iterator[Line]:
    """The part's rows, in order, counted to the digest. Raises InputChanged where they are gone."""
    try:
        with _idle.lend(part.path, part.start, lambda: _Rows(part.path, columns), columns) as rows:
            rows.skip_to(part.start)
            for fields, content in rows.read(part.end):
                digest.update(content + b"\n")
                yield Line(f"{part.path} row {rows.position}", content, fields)
            short = rows.position < part.end
    except InputChanged:
        raise
    except RunError as error:
        raise InputChanged.of(part.path) from error
    if short:
        raise InputChanged.of(part.path)


class _Rows:
    """The rows of a Parquet file, open; `position` is the number of rows read or skipped, `count` that of all."""

    def __init__(self, path: str, columns: Columns = None) -> None:
        import pyarrow.parquet as pq

        self.position = 0
        self._path = path
        self._input = open_input(path)
        with self._damage():
            # Buffered: a column of a row group may be gigabytes of images.
            self._file = pq.ParquetFile(self._input, buffer_size=BUFFER_BYTES)
        self._require_distinct(self._file.schema_arrow.names)
        metadata = self._file.metadata
        self.count: int = metadata.num_rows
        self._groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(group.num_rows for group in self._groups)]
        self._names = _selected(self._file.schema_arrow.names, columns)
        self._plain = plain_values(self._file.schema_arrow)
        self._next_group = 0
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = ()

    def skip_to(self, position: int) -> None:
        """Go on to this row; row groups between are not read."""
        group = bisect.bisect_right(self._starts, position) - 1
        if self._next_group <= group < len(self._groups):
            self._start_group(group)
        while self.position < position and self._fill():
            self._take(position - self.position)

    def read(self, end: int) -> Iterator[tuple[Json, bytes]]:
        """The rows up to this one (exclusive), as far as there are any, each with what it is known by."""
        while self.position < end and self._fill():
            for row in self._values(self._batch.slice(0, end - self.position)):
                self._take(1)
                fields = self._plain(row)
                yield fields, self._content(fields)

    def close(self) -> None:
        self._file.close()
        self._input.close()

    def _values(self, batch: Any) -> list[Json]:
        try:
            return in_microseconds(batch).to_pylist(maps_as_pydicts="lossy")  # type: ignore[no-any-return]
        except _UNREADABLE:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    in_microseconds(type(batch).from_arrays([column], [name])).to_pylist(maps_as_pydicts="lossy")
                except _UNREADABLE as error:
                    raise self._unusable(name, error) from error
            raise

    def _content(self, fields: Json) -> bytes:
        try:
            return content_of(fields)
        except TypeError:
            for name, value in fields.items():
                try:
                    content_of({name: value})
                except TypeError as error:
                    raise self._unusable(name, error) from error
            raise

    def _unusable(self, column: str, error: Exception) -> RunError:
        return RunError(f"dataset.path: {self._path}: column '{column}' holds what cannot be used: {error}")

    def _require_distinct(self, names: list[str]) -> None:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RunError(f"dataset.path: {self._path}: two columns are named '{twice[0]}'; rename one")

    def _start_group(self, group: int) -> None:
        row_bytes = self._groups[group].total_byte_size // max(self._groups[group].num_rows, 1)
        rows = min(max(COPY_BYTES // max(row_bytes, 1), 1), MOST_BATCH_ROWS)
        self._batches = self._file.iter_batches(rows, row_groups=[group], columns=self._names)
        self._batch = ()
        self.position = self._starts[group]
        self._next_group = group + 1

    def _fill(self) -> bool:
        """Have rows at hand; false at the file's end."""
        while not len(self._batch):
            with self._damage():
                batch = next(self._batches, None)
            if batch is not None:
                self._batch = batch
            elif self._next_group < len(self._groups):
                self._start_group(self._next_group)
            else:
                return False
        return True

    def _take(self, rows: int) -> None:
        rows = min(rows, len(self._batch))
        self._batch = self._batch.slice(rows)
        self.position += rows

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        """RunError for what Arrow cannot read."""
        try:
            yield
        except (OSError, ValueError) as error:
            # A disk's or a store's errors have a number; Arrow's, which are ValueErrors too, do not.
            if getattr(error, "errno", None) is not None:
                raise
            raise RunError(f"dataset.path: {self._path} is no Parquet file that can be read: {error}") from error


def _selected(names: list[str], columns: Columns) -> list[str]:
    own = [name for name in names if not PANDAS_INDEX.fullmatch(name)]
    return own if columns is None else [name for name in own if name in columns] or own


def _hash_file(path: str, cutter: ShardCutter) -> None:
    with open_input(path, "background") as file:
        while block := file.read(BUFFER_BYTES):
            cutter.hash_input(block)


_idle: IdleReaders[_Rows] = IdleReaders()
