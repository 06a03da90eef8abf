"""JSON lines: where the records of a file begin and end, and the lines of a byte range.

A line is a record unless it is blank (white space only). A byte order mark at a file's start belongs to no shard; a
last line that lacks its newline is hashed as if it had one. Compressed files are the same in decompressed bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tasks.errors import InputChanged, RunError
from tasks.inputs.compressed import is_compressed, read_compressed, read_compressed_range
from tasks.inputs.line import Line
from tasks.inputs.shards import ShardCutter
from tasks.records import FilePart
from tasks.storage import open_input, open_range

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
    """Feed a file to the cutter, until its end or the limit; returns the blank lines met.

    Raises RunError for UTF-16, in which a newline is not a byte, and for a damaged compressed file.
    """
    scan = _Scan(path, cutter)
    for block in _blocks(path, cutter):
        scan.take(block)
        if cutter.finished:
            return scan.blank_lines
    scan.end()
    return scan.blank_lines


def read_lines(part: FilePart, digest: Any) -> Iterator[Line]:
    """The part's records, in order; all its bytes count to the digest. Raises InputChanged where some are gone."""
    for number, line in enumerate(split_lines(_hashed(part, digest)), part.first_line):
        if stripped := line.strip():
            yield Line(f"{part.path} line {number}", stripped)


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


def _blocks(path: str, cutter: ShardCutter) -> Iterator[bytes]:
    if is_compressed(path):
        yield from read_compressed(path, BLOCK_BYTES, cutter.hash_input)
        return
    with open_input(path, "background") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _hashed(part: FilePart, digest: Any) -> Iterator[bytes]:
    read = read_compressed_range if is_compressed(part.path) else open_range
    left, block = part.end - part.start, b""
    for block in read(part.path, part.start, part.end):
        digest.update(block)
        left -= len(block)
        yield block
    if left:
        raise InputChanged.of(part.path)
    if not block.endswith(b"\n"):
        digest.update(b"\n")


class _Scan:
    """One pass over one file; `_position` and `_line` are those of the next block's first byte."""

    def __init__(self, path: str, cutter: ShardCutter) -> None:
        self.blank_lines = 0
        self._path = path
        self._cutter = cutter
        self._hash_input = not is_compressed(path)
        self._marks = _Marks()
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
        newlines, lines, plain = self._marks.find(view)
        if plain and self._starts_plain(view) and lines < self._cutter.room:
            self._give(view, lines)
            self._inside_record = self._unterminated = view[-1] != NEWLINE
        else:
            lines = self._take_line_by_line(view, newlines)
        self._position += len(view)
        self._line += lines

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
        if self._hash_input:
            self._cutter.hash_input(BOM)
        self._cutter.start_file(self._path, self._position)
        return view[len(BOM) :]

    def _starts_plain(self, view: memoryview) -> bool:
        """Whether the block's first line is known to be a record."""
        return self._inside_record or (not self._unterminated and view[0] > SPACE)

    def _take_line_by_line(self, view: memoryview, newlines: Flags) -> int:
        ends = newlines.nonzero()[0] + 1
        blank = _blank_lines(view, ends, self._inside_record)
        lines = self._cut(view, ends, ends[~blank])
        self.blank_lines += int(blank[:lines].sum())
        tail = view[ends[-1] if len(ends) else 0 :]
        self._unterminated = bool(tail)
        self._inside_record = (self._inside_record and not len(ends)) or bool(tail.tobytes().strip())
        return lines

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
        if self._hash_input:
            self._cutter.hash_input(content)
        self._cutter.add(content, records)


class _Marks:
    """Finds newlines in blocks, in memory that is allocated once: allocating costs more than finding."""

    def __init__(self) -> None:
        import numpy as np

        self._newlines, self._spaces = np.empty(BLOCK_BYTES, np.bool_), np.empty(BLOCK_BYTES, np.bool_)

    def find(self, block: memoryview) -> tuple[Flags, int, bool]:
        """Which bytes are newlines (valid until the next call), how many, and whether no white space follows one.

        Where some does, a line may be blank, and a closer look is needed.
        """
        import numpy as np

        codes = np.frombuffer(block, np.uint8)
        newlines = np.equal(codes, NEWLINE, out=self._newlines[: len(codes)])
        after = np.less_equal(codes, SPACE, out=self._spaces[: len(codes)])[1:]
        plain = not np.logical_and(after, newlines[:-1], out=after).any()
        return newlines, int(np.count_nonzero(newlines)), plain


def _blank_lines(block: memoryview, ends: Offsets, inside_record: bool) -> Flags:
    """For each line that ends in the block at `ends`, whether it is blank.

    `inside_record` tells that the first line has begun before, and is not blank.
    """
    import numpy as np

    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    first = np.frombuffer(block, np.uint8)[starts]
    blank: Flags = first == NEWLINE
    # Few lines begin with white space: only these are looked at one by one.
    for number in np.flatnonzero((first <= SPACE) & ~blank):
        blank[number] = not block[starts[number] : ends[number]].tobytes().strip()
    if inside_record and len(blank):
        blank[0] = False
    return blank
