"""Parquet's values as the JSON that the same record would be in a JSONL file."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

from tasks.records import Json


def plain_values(schema: Any) -> Callable[[Json], Json]:
    """A function that turns a row of this Arrow schema into JSON's types, in place; bytes stay bytes.

    Dates and times become ISO text, decimals text, durations seconds. In a message or a part of one, empty fields
    other than `content` are dropped: Parquet gives each message the fields of all.
    """
    odd = [field.name for field in schema if _is_odd(field.type)]

    def plain(row: Json) -> Json:
        for name in odd:
            if row.get(name) is not None:
                row[name] = _plain(row[name])
        return row

    return plain


def _is_odd(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name in ("role", "type") or _is_odd(field.type) for field in kind)
    if types.is_map(kind):
        return _is_odd(kind.item_type)
    if types.is_dictionary(kind) or types.is_nested(kind):
        return hasattr(kind, "value_type") and _is_odd(kind.value_type)
    return bool(types.is_temporal(kind) or types.is_decimal(kind))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        sparse = "role" in value or "type" in value
        kept = {name: item for name, item in value.items() if item is not None or not sparse or name == "content"}
        return {name: _plain(item) for name, item in kept.items()}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, decimal.Decimal) else value
