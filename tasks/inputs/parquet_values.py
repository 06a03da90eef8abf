"""Parquet's values as the JSON that the same record would be in a JSONL file."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

from tasks.records import Json

TOOLS = "tools"
FILE = {"bytes", "path"}
"""The fields of an image or video that lies in the table; it keeps both."""


def plain_values(schema: Any) -> Callable[[Json], Json]:
    """A function that turns a row of this Arrow schema into JSON's types, in place; bytes stay bytes.

    Dates and times become ISO text, decimals text, durations seconds, a map's keys text. Parquet gives each message and
    each tool the fields of all: their empty fields are dropped, at any depth, but for a message's `content`.
    """
    odd = [field.name for field in schema if field.name == TOOLS or _is_odd(field.type)]

    def plain(row: Json) -> Json:
        for name in odd:
            if row.get(name) is not None:
                value = _plain(row[name])
                row[name] = _filled(value) if name == TOOLS else value
        return row

    return plain


def in_microseconds(batch: Any) -> Any:
    """The Arrow batch with its times of nanoseconds cut to microseconds, the finest that Python has."""
    import pyarrow as pa

    kinds = [_coarser(kind) for kind in batch.schema.types]
    if kinds == batch.schema.types:
        return batch
    return batch.cast(pa.schema(list(zip(batch.schema.names, kinds, strict=True))), safe=False)


def _coarser(kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.types as types

    if getattr(kind, "unit", None) == "ns":
        return next(
            coarse
            for is_kind, coarse in (
                (types.is_timestamp, pa.timestamp("us", getattr(kind, "tz", None))),
                (types.is_duration, pa.duration("us")),
                (types.is_time, pa.time64("us")),
            )
            if is_kind(kind)
        )
    if types.is_struct(kind):
        return pa.struct([field.with_type(_coarser(field.type)) for field in kind])
    if types.is_map(kind):
        key, item = _coarser(kind.key_type), _coarser(kind.item_type)
        return kind if (key, item) == (kind.key_type, kind.item_type) else pa.map_(key, item)
    value = getattr(kind, "value_type", None)
    if value is None or (coarse := _coarser(value)) == value:
        return kind
    if types.is_dictionary(kind):
        return coarse
    if types.is_fixed_size_list(kind):
        return pa.list_(coarse, kind.list_size)
    return pa.large_list(coarse) if types.is_large_list(kind) else pa.list_(coarse)


def _is_odd(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "role" or _is_odd(field.type) for field in kind)
    if types.is_map(kind):
        return not types.is_string(kind.key_type) or _is_odd(kind.item_type)
    if types.is_dictionary(kind) or types.is_nested(kind):
        return hasattr(kind, "value_type") and _is_odd(kind.value_type)
    return bool(types.is_temporal(kind) or types.is_decimal(kind))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_message(item) if isinstance(item, dict) and "role" in item else item for item in map(_plain, value)]
    if isinstance(value, dict):
        return {_key(name): _plain(item) for name, item in value.items()}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, decimal.Decimal) else value


def _key(name: Any) -> str:
    if isinstance(name, bytes):
        return name.decode(errors="backslashreplace")
    return str(name).lower() if isinstance(name, bool) else str(_plain(name))


def _message(message: Json) -> Json:
    return {name: _filled(item) for name, item in message.items() if item is not None or name == "content"}


def _filled(value: Any) -> Any:
    """The value without the empty fields of all objects in it."""
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if not isinstance(value, dict) or value.keys() == FILE:
        return value
    return {name: _filled(item) for name, item in value.items() if item is not None}
