"""The records of a shard, read straight from the dataset's files in constant memory.

What is read is hashed: a shard is either the bytes that split_dataset saw, or InputChanged. Two versions of a dataset
are never mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

from tasks.errors import InputChanged
from tasks.inputs.lines import BOM, split_lines
from tasks.inputs.listing import list_inputs
from tasks.records import BadRecord, FilePart, Record, RecordError, Shard
from tasks.storage import open_range

__all__ = ["list_inputs", "read_shard", "verify_shard"]


def read_shard(shard: Shard) -> Iterator[Record | BadRecord]:
    """The shard's records in order; a line that is no JSON object comes as a BadRecord.

    Raises InputChanged at the end, or as soon as it shows, when the bytes are not those that were split: call
    `verify_shard` first where no row of a changed file may be used.
    """
    content = hashlib.sha256()
    index = shard.start
    for part in shard.parts:
        for number, line in enumerate(split_lines(_hashed(part, content)), part.first_line):
            if stripped := line.strip():
                if index == shard.start + shard.records:
                    raise _changed(part.path)
                yield _parse(stripped, index, f"{part.path} line {number}")
                index += 1
    _check(shard, content)


def verify_shard(shard: Shard) -> None:
    """Read and hash the shard's bytes. Raises InputChanged when they are not those that were split, or are gone."""
    content = hashlib.sha256()
    for part in shard.parts:
        for _ in _hashed(part, content):
            pass
    _check(shard, content)


def _hashed(part: FilePart, content: Any) -> Iterator[bytes]:
    """The part's blocks, counted to the hash; a last line without its newline counts as if it had one."""
    left, block = part.end - part.start, b""
    try:
        for block in open_range(part.path, part.start, part.end):
            content.update(block)
            left -= len(block)
            yield block
    except FileNotFoundError as error:
        raise _changed(part.path) from error
    if left:
        raise _changed(part.path)
    if not block.endswith(b"\n"):
        content.update(b"\n")


def _check(shard: Shard, content: Any) -> None:
    if content.hexdigest() != shard.sha256:
        raise _changed(", ".join(part.path for part in shard.parts))


def _changed(path: str) -> InputChanged:
    return InputChanged(f"dataset.path: {path} changed while the run was using it; run again")


def _parse(line: bytes, index: int, where: str) -> Record | BadRecord:
    digest = hashlib.sha256(line).hexdigest()[:16]
    try:
        fields = orjson.loads(line.removeprefix(BOM))
    except orjson.JSONDecodeError as error:
        return BadRecord(index, digest, where, RecordError("malformed_record", f"{where}: not JSON: {error}"))
    if isinstance(fields, dict):
        return Record(index, digest, where, fields)
    message = f"{where}: must be a JSON object, got {type(fields).__name__}"
    return BadRecord(index, digest, where, RecordError("malformed_record", message))
