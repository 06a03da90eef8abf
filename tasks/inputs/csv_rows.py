"""CSV with a header: byte ranges that end between records, quoted newlines and all. Each field is text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO, Any

from tasks.errors import InputChanged, RunError
from tasks.inputs.line import Line
from tasks.inputs.rows import content_of
from tasks.inputs.shards import ShardCutter
from tasks.records import FilePart
from tasks.storage import is_remote, open_input

BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# A quote that is never closed swallows what follows: so much of it, and no more.
LONGEST_FIELD = 64 << 20


def scan_csv(path: str, cutter: ShardCutter) -> int:
    """Feed a CSV file to the cutter, until its end or the limit; returns the blank lines met. Raises RunError for a
    header that names a column twice."""
    blank_lines = 0
    with _open(path) as file:
        table = _Table(path, file)
        cutter.hash_input(table.taken())
        cutter.start_file(path, table.position, table.line)
        for row in table.rows():
            cutter.hash_input(table.taken())
            if row is None:
                blank_lines += 1
                continue
            cutter.add(row.content + b"\n", 1)
            if not cutter.room:
                cutter.cut(table.position, table.line)
                if cutter.finished:
                    return blank_lines
        cutter.end_file(table.position)
    return blank_lines


def read_csv(part: FilePart, digest: Any) -> Iterator[Line]:
    """The part's records, in order, counted to the digest. Raises InputChanged where they are gone."""
    with _open(part.path) as file:
        table = _Table(part.path, file)
        table.go_to(part)
        for row in table.rows():
            if row is not None:
                digest.update(row.content + b"\n")
                yield row
        if table.position != part.end:
            raise InputChanged.of(part.path)


class _Table:
    """A CSV file behind its header; `position` and `line` are those of the next record's first byte."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self.position = 0
        self.line = 1
        self._path = path
        self._file = file
        self._end: int | None = None
        self._taken: list[bytes] = []
        self._names = self._header()

    def go_to(self, part: FilePart) -> None:
        self._file.seek(part.start)
        self.position, self.line, self._end = part.start, part.first_line, part.end
        self._taken.clear()

    def taken(self) -> bytes:
        """The bytes read since the last call."""
        taken = b"".join(self._taken)
        self._taken.clear()
        return taken

    def rows(self) -> Iterator[Line | None]:
        """The records that follow; None for a blank line."""
        reader = self._reader()
        while True:
            self._taken.clear()
            where = f"{self._path} line {self.line}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Line(where, b"".join(self._taken), error=f"not CSV: {error}")
                continue
            if cells is None:
                return
            yield self._row(where, cells)

    def _row(self, where: str, cells: list[str]) -> Line | None:
        raw = b"".join(self._taken)
        if not raw.strip():
            return None
        if len(cells) != len(self._names):
            return Line(where, raw, error=f"{len(cells)} fields where the header has {len(self._names)}")
        fields = dict(zip(self._names, cells, strict=True))
        try:
            return Line(where, content_of(fields), fields)
        except TypeError:
            return Line(where, raw, error="not UTF-8")

    def _header(self) -> list[str]:
        try:
            names = next((cells for cells in self._reader() if "".join(cells).strip()), [])
            "".join(names).encode()
        except (csv.Error, UnicodeEncodeError) as error:
            raise RunError(f"dataset.path: {self._path} line 1: no CSV header in UTF-8: {error}") from error
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RunError(f"dataset.path: {self._path}: the header names '{twice[0]}' twice; rename one")
        return names

    def _reader(self) -> Iterator[list[str]]:
        csv.field_size_limit(LONGEST_FIELD)
        return csv.reader(self._text_lines(), strict=True)

    def _text_lines(self) -> Iterator[str]:
        while (self._end is None or self.position < self._end) and (raw := self._file.readline()):
            text = raw.removeprefix(BOM) if self.position == 0 else raw
            if self.position == 0 and raw[:2] in UTF16_BOMS:
                raise RunError(f"dataset.path: {self._path} is UTF-16; save it as UTF-8")
            self.position += len(raw)
            self.line += 1
            self._taken.append(raw)
            # What is no UTF-8 is found in its record, and spoils no other.
            yield text.decode("utf-8", "surrogateescape")


def _open(path: str) -> IO[bytes]:
    file = open_input(path)
    return io.BufferedReader(file) if is_remote(path) else file  # type: ignore[type-var]
