"""JSON lines: where the records of a file begin and end, and the lines of a byte range.

A line is a record unless it is blank (white space only). A byte order mark at a file's start belongs to no shard; a
last line that lacks its newline is hashed as if it had one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tasks.errors import RunError
from tasks.inputs.shards import ShardCutter
from tasks.storage import open_input

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Offsets = NDArray[np.int64]
    Flags = NDArray[np.bool_]

BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
NEWLINE, SPACE = 10, 32
BLOCK_BYTES = 1 << 20


def scan_lines(path: str, cutter: ShardCutter) -> int:
    """Feed a JSONL file to the cutter, until its end or the limit; returns the blank lines met.

    Raises RunError for UTF-16, in which a newline is not a byte.
    """
    scan = _Scan(path, cutter)
    for block in read_blocks(path):
        scan.take(block)
        if cutter.finished:
            return scan.blank_lines
    scan.end()
    return scan.blank_lines


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a byte range, blank ones too, without their newlines; holds one block and one line."""
    begun: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if rest := b"".join(begun):
        yield rest


def read_blocks(path: str) -> Iterator[bytes]:
    """A file from start to end."""
    with open_input(path) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


class _Scan:
    """One pass over one file; `_position` and `_line` are those of the next block's first byte."""

    def __init__(self, path: str, cutter: ShardCutter) -> None:
        self.blank_lines = 0
        self._path = path
        self._cutter = cutter
        self._position = 0
        self._line = 1
        self._inside_record = False
        self._unterminated = False
        cutter.start_file(path)

    def take(self, block: bytes) -> None:
        view = memoryview(block)
        if self._position == 0:
            view = self._skip_bom(view)
        if not view:
            return
        lines = self._count_plain(view)
        if lines is not None and lines < self._cutter.room:
            self._give(view, lines)
            self._inside_record = self._unterminated = view[-1] != NEWLINE
        else:
            lines = self._take_line_by_line(view)
        self._position += len(view)
        self._line += lines

    def _count_plain(self, view: memoryview) -> int | None:
        """The lines that end here where, as nearly always, it takes no closer look to know that all are records."""
        starts_plain = self._inside_record or (not self._unterminated and view[0] > SPACE)
        return count_plain_lines(view) if starts_plain else None

    def _take_line_by_line(self, view: memoryview) -> int:
        ends, blank = line_ends(view, self._inside_record)
        lines = self._cut(view, ends, ends[~blank])
        self.blank_lines += int(blank[:lines].sum())
        tail = view[ends[-1] if len(ends) else 0 :]
        self._unterminated = bool(tail)
        self._inside_record = (self._inside_record and not len(ends)) or bool(tail.tobytes().strip())
        return lines

    def end(self) -> None:
        """The file's end; it ends the last line too."""
        if self._unterminated:
            self._cutter.add(b"\n", int(self._inside_record))
            self.blank_lines += not self._inside_record
            if not self._cutter.room:
                self._cutter.cut(self._position, self._line + 1)
        self._cutter.end_file(self._position)

    def _skip_bom(self, view: memoryview) -> memoryview:
        if view[:2].tobytes() in UTF16_BOMS:
            raise RunError(f"dataset.path: {self._path} is UTF-16; save it as UTF-8")
        if view[:3] != BOM:
            return view
        self._position = len(BOM)
        self._cutter.hash_input(BOM)
        self._cutter.start_file(self._path, self._position)
        return view[len(BOM) :]

    def _cut(self, view: memoryview, ends: Offsets, record_ends: Offsets) -> int:
        """Give the block to the cutter, shard by shard; returns the number of lines that ended before the limit."""
        begin = done = 0
        while len(record_ends) - done >= self._cutter.room:
            done += self._cutter.room
            end = int(record_ends[done - 1])
            lines = int(ends.searchsorted(end)) + 1
            self._give(view[begin:end], self._cutter.room)
            self._cutter.cut(self._position + end, self._line + lines)
            if self._cutter.finished:
                return lines
            begin = end
        self._give(view[begin:], len(record_ends) - done)
        return len(ends)

    def _give(self, content: memoryview, records: int) -> None:
        self._cutter.hash_input(content)
        self._cutter.add(content, records)


def count_plain_lines(block: memoryview) -> int | None:
    """The newlines in the block, or None where one is followed by white space: a blank line perhaps."""
    import numpy as np

    codes = np.frombuffer(block, np.uint8)
    newlines = codes == NEWLINE
    if (newlines[:-1] & (codes[1:] <= SPACE)).any():
        return None
    return int(np.count_nonzero(newlines))


def line_ends(block: memoryview, inside_record: bool) -> tuple[Offsets, Flags]:
    """For each line that ends in the block, the offset behind its newline, and whether it is blank.

    `inside_record` tells that the first line has begun before, and is not blank.
    """
    import numpy as np

    codes = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(codes == NEWLINE) + 1
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    first = codes[starts]
    blank = first == NEWLINE
    # Few lines begin with white space: only these are looked at one by one.
    for number in np.flatnonzero((first <= SPACE) & ~blank):
        blank[number] = not block[starts[number] : ends[number]].tobytes().strip()
    if inside_record and len(blank):
        blank[0] = False
    return ends, blank
