"""The records of a shard, read straight from the dataset's files in constant memory.

What is read is hashed: a shard is either what split_dataset saw, or InputChanged. Two versions of a dataset are never
mixed.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from tasks.errors import InputChanged
from tasks.inputs.formats import read_part
from tasks.inputs.line import Line
from tasks.inputs.lines import BOM
from tasks.inputs.listing import list_inputs
from tasks.records import BadRecord, Record, RecordError, Shard

LARGEST, LEAST = 2**64 - 1, -(2**63)
"""Whole numbers that orjson reads and writes exactly."""

__all__ = ["list_inputs", "read_shard", "verify_shard"]


def read_shard(shard: Shard) -> Iterator[Record | BadRecord]:
    """The shard's records in order; a line that is no JSON object comes as a BadRecord.

    Raises InputChanged at the end, or as soon as it shows, when the records are not those that were split: call
    `verify_shard` first where no row of a changed file may be used.
    """
    for index, line in enumerate(_lines(shard), shard.start):
        if index == shard.start + shard.records:
            raise _changed(shard)
        yield _record(line, index)


def verify_shard(shard: Shard, tick: Callable[[], None] = lambda: None) -> None:
    """Read and hash the shard's records; `tick` is called for each.

    Raises InputChanged when they are not those that were split, or are gone.
    """
    for _ in _lines(shard):
        tick()


def _lines(shard: Shard) -> Iterator[Line]:
    digest = hashlib.sha256()
    for part in shard.parts:
        try:
            yield from read_part(part, shard.columns, digest)
        except FileNotFoundError as error:
            raise InputChanged.of(part.path) from error
        except OSError as error:
            if not _was_replaced(error):
                raise
            raise InputChanged.of(part.path) from error
    if digest.hexdigest() != shard.sha256:
        raise _changed(shard)


def _was_replaced(error: OSError) -> bool:
    """Whether it is what s3fs raises for an object that was replaced while it is read; a busy store has its number."""
    if error.errno != errno.EBUSY:
        return False
    from tasks.s3_patience import is_transient

    return error.__cause__ is None or not is_transient(error.__cause__)


def _changed(shard: Shard) -> InputChanged:
    return InputChanged.of(", ".join(part.path for part in shard.parts))


def _record(line: Line, index: int) -> Record | BadRecord:
    digest = hashlib.sha256(line.content).hexdigest()[:16]
    fields, error = line.fields, line.error
    if fields is None and error is None:
        fields, error = _parse(line.content)
    if error is not None:
        return BadRecord(index, digest, line.where, RecordError("malformed_record", f"{line.where}: {error}"))
    return Record(index, digest, line.where, fields or {})


def _parse(content: bytes) -> tuple[Any, str | None]:
    """The object, or why there is none."""
    try:
        fields = orjson.loads(content.removeprefix(BOM))
    except orjson.JSONDecodeError as error:
        return None, f"not JSON: {error}"
    if not isinstance(fields, dict):
        return None, f"must be a JSON object, got {type(fields).__name__}"
    return _exact(content) if _has_huge(fields) else (fields, None)


def _has_huge(fields: Any) -> bool:
    """Whether there is a number that orjson may have rounded: a whole one over 64 bits becomes a float."""
    left = [fields]
    while left:
        value = left.pop()
        if isinstance(value, float):
            if abs(value) >= -LEAST:
                return True
        elif isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False


def _exact(content: bytes) -> tuple[Any, str | None]:
    """The object with such whole numbers as text: an id or a label is no other one for being long."""
    try:
        return json.loads(content.removeprefix(BOM), parse_int=_whole), None
    except RecursionError:
        return None, "a whole number over 64 bits is nested too deep to be read"


def _whole(digits: str) -> int | str:
    fits = len(digits) <= len(str(LEAST)) and LEAST <= int(digits) <= LARGEST
    return int(digits) if fits else digits
