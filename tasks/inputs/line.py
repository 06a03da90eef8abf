"""What every format's reader yields, and every scan counts: the text of one record and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.records import Json


@dataclass(frozen=True, slots=True)
class Line:
    """One record as found.

    `where` is its file and 1-based line or row number; `content` the bytes that it is known by: the line of a JSONL
    file, else its fields as JSON. `fields` is None where the content is yet to be parsed; `error` tells why there are
    none.
    """

    where: str
    content: bytes
    fields: Json | None = None
    error: str | None = None
