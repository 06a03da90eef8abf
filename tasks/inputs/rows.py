"""Rows of tables (Parquet, CSV): known by their fields as JSON, so that a table's layout does not matter."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from tasks.records import Json


def content_of(fields: Json) -> bytes:
    """The fields as JSON, names sorted; bytes (images) by their hash. Raises TypeError for text that is no UTF-8."""
    return orjson.dumps(fields, default=_stand_in, option=orjson.OPT_SORT_KEYS)


def _stand_in(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")
