"""Where records tell how much they may generate: their own max_tokens, and whose turn it is by it."""

from __future__ import annotations

import math
from typing import Any

from tasks.engines.shard_work import Owed
from tasks.records import Json, RecordError

LONGEST_SHARE = 0.1
"""Of these records, how many go first. All in order of length would fill the KV cache with long ones alone."""


def longest_first(batch: list[Owed], max_tokens_field: str) -> list[Owed]:
    """The tenth of the records that may generate most, longest first, then the others in their order."""

    def most(owed: Owed) -> int:
        value = _whole(getattr(owed.record, "fields", {}).get(max_tokens_field))
        return value if isinstance(value, int) else 0

    longest = sorted(batch, key=most, reverse=True)[: math.ceil(LONGEST_SHARE * len(batch))]
    first = {owed.record.original_index for owed in longest}
    return longest + [owed for owed in batch if owed.record.original_index not in first]


def own_max_tokens(fields: Json, name: str | None, where: str) -> int | None:
    """The record's own max_tokens; None where it has none. Raises RecordError("malformed_record")."""
    value = _whole(fields.get(name)) if name is not None else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RecordError("malformed_record", f"{where}: '{name}' must be a whole number above 0, got {value!r}")
    return value


def _whole(value: Any) -> Any:
    """A whole number that a table has as text or as a float; None for an empty cell. Anything else as it is."""
    if isinstance(value, str):
        text = value.strip()
        return (int(text) if text.isdecimal() and len(text) < 19 else value) if text else None
    return int(value) if isinstance(value, float) and value.is_integer() else value
