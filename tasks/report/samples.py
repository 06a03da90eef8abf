"""A choice of samples for the report: an even spread of records, and what stands out.

The choice is the same for the same files. However large the run is, at most SCAN_BYTES of it are read; on top, a shard
for each thing that the tallies count and the scan has not met, so that each kind of error has its example.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice, zip_longest
from typing import Any, TypeVar

import orjson

from tasks.answers import answer_matches, answer_ok, graded_text
from tasks.config import ValidationConfig
from tasks.records import FileManifest, Json, ShardManifest, Tally
from tasks.report.embed import json_for_html
from tasks.storage import Storage, open_input

SCAN_BYTES = 32 << 20
WINDOW_BYTES = 1 << 20
MOST_BYTES = 3 << 20
"""Bytes of JSON that all samples together may take in the page."""

SPREAD_RECORDS = 240
SAMPLES_A_RECORD = 4
EACH_FLAG = 80
EACH_FLAG_A_WINDOW = 12
EACH_ERROR_KIND = 40
MOST_CHARACTERS = {"prompt": 6000, "predict": 6000, "reasoning": 4000}
OTHER_CHARACTERS = 2000

_COLUMNS = ("original_index", "sample_id", "id", "prompt", "label", "predict", "reasoning", "answer", "finish_reason")
_COUNTS = ("prompt_tokens", "completion_tokens")
_TELLING: dict[str, Callable[[Tally], int]] = {
    "truncated": lambda tally: tally.truncated,
    "empty": lambda tally: tally.empty,
    "format": lambda tally: tally.format_errors,
    "wrong": lambda tally: tally.graded - tally.correct,
}
"""What stands out in a sample, and how a tally counts it."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as the page shows it: texts shortened, `flags` for its filters."""

    index: int
    sample: int
    flags: tuple[str, ...]
    fields: Json

    def json(self) -> Json:
        """What the page's script reads."""
        return {"index": self.index, "sample": self.sample, "flags": self.flags, **self.fields}


def choose(storage: Storage, folder: str, shards: Sequence[ShardManifest], validation: ValidationConfig) -> list[Shown]:
    """At most MOST_BYTES of samples and errors, in the order of the dataset."""
    spread: list[Shown] = []
    by_flag: dict[str, list[Shown]] = defaultdict(list)
    windows = _windows(shards)
    records_a_window = -(-SPREAD_RECORDS // max(1, len(windows)))
    for file, start, end in windows:
        rows = [_shown(row, validation) for row in read_rows(storage, f"{folder}/{file.name}", start, end)]
        spread += _spread(rows, records_a_window)
        for flag in _TELLING:
            by_flag[flag] += _evenly([row for row in rows if flag in row.flags], EACH_FLAG_A_WINDOW)
    _add_rare(storage, folder, shards, validation, by_flag)
    groups = [_evenly(rows, EACH_FLAG) for rows in by_flag.values()]
    return _within_bytes([*_errors(storage, folder, shards), spread, *groups])


def _windows(shards: Sequence[ShardManifest]) -> list[tuple[FileManifest, int, int]]:
    """Byte ranges of the shards' data files: all of them, or for a large run evenly spread windows."""
    files = [shard.data for shard in shards if shard.data.bytes]
    total = sum(file.bytes for file in files)
    if total <= SCAN_BYTES:
        return [(file, 0, file.bytes) for file in files]
    ends = list(accumulate(file.bytes for file in files))
    windows = []
    for number in range(SCAN_BYTES // WINDOW_BYTES):
        at = number * total // (SCAN_BYTES // WINDOW_BYTES)
        which = bisect.bisect_right(ends, at)
        start = at - (ends[which] - files[which].bytes)
        windows.append((files[which], start, min(start + WINDOW_BYTES, files[which].bytes)))
    return windows


def read_rows(storage: Storage, name: str, start: int = 0, end: int | None = None) -> Iterator[Json]:
    """The rows whose line starts in [start, end)."""
    with open_input(f"{storage.root}/{name}") as file:
        file.seek(max(0, start - 1))
        at = start if start == 0 else start - 1 + len(file.readline())
        while (end is None or at < end) and (line := file.readline()):
            at += len(line)
            yield orjson.loads(line)


def _shown(row: Json, validation: ValidationConfig) -> Shown:
    fields: Json = {name: _short(row.get(name), MOST_CHARACTERS.get(name, OTHER_CHARACTERS)) for name in _COLUMNS[2:]}
    fields |= {name: row[name] for name in _COUNTS}
    extra = {name: value for name, value in row.items() if name not in _COLUMNS and name not in _COUNTS}
    if extra:
        fields["extra"] = {name: _short(value, OTHER_CHARACTERS) for name, value in islice(extra.items(), 20)}
    present = {name: value for name, value in fields.items() if value is not None}
    return Shown(row["original_index"], row["sample_id"], _flags(row, validation), present)


def _flags(row: Json, validation: ValidationConfig) -> tuple[str, ...]:
    right = answer_matches(graded_text(row, validation), row["label"], validation)
    held = {
        "truncated": row["finish_reason"] == "length",
        "empty": not row["predict"].strip(),
        "format": not answer_ok(row["answer"], validation),
        "wrong": right is False,
        "right": right is True,
    }
    return tuple(flag for flag, holds in held.items() if holds)


def _short(value: Any, most: int) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 3
    return f"{text[:head]}\n… {len(text) - head - tail:,} characters left out …\n{text[-tail:]}"


def _spread(rows: Sequence[Shown], records: int) -> list[Shown]:
    """The first samples of evenly spread records."""
    grouped = [list(islice(group, SAMPLES_A_RECORD)) for _, group in groupby(rows, key=lambda row: row.index)]
    return [row for group in _evenly(grouped, records) for row in group]


def _evenly(items: Sequence[T], most: int) -> list[T]:
    if len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]


def _add_rare(
    storage: Storage,
    folder: str,
    shards: Sequence[ShardManifest],
    validation: ValidationConfig,
    by_flag: dict[str, list[Shown]],
) -> None:
    """Look up what the tallies count and the scan has not met."""
    for flag, count in _TELLING.items():
        with_it = next((shard for shard in shards if count(shard.tally)), None)
        if with_it is None or by_flag[flag]:
            continue
        rows = (_shown(row, validation) for row in read_rows(storage, f"{folder}/{with_it.data.name}"))
        by_flag[flag] += islice((row for row in rows if flag in row.flags), EACH_FLAG_A_WINDOW)


def _errors(storage: Storage, folder: str, shards: Sequence[ShardManifest]) -> list[list[Shown]]:
    """Error rows by kind, one a record, from evenly spread shards that have the kind."""
    kinds = sorted({kind for shard in shards for kind in shard.tally.errors_by_kind})
    return [list(_errors_of(storage, folder, shards, kind)) for kind in kinds]


def _errors_of(storage: Storage, folder: str, shards: Sequence[ShardManifest], kind: str) -> Iterator[Shown]:
    with_it = _evenly([shard for shard in shards if kind in shard.tally.errors_by_kind], 8)
    for shard in with_it:
        rows = (row for row in read_rows(storage, f"{folder}/{shard.errors.name}") if row["error"] == kind)
        first = (next(group) for _, group in groupby(rows, key=lambda row: row["original_index"]))
        for row in islice(first, EACH_ERROR_KIND // len(with_it)):
            fields = {"error": kind, "message": _short(row["message"], OTHER_CHARACTERS)}
            yield Shown(row["original_index"], row["sample_id"], ("error",), fields)


def _within_bytes(groups: Sequence[Sequence[Shown]]) -> list[Shown]:
    """Rows of all groups in turn, each once, until the bytes are used up."""
    chosen: dict[tuple[int, int], Shown] = {}
    left = MOST_BYTES
    for turn in zip_longest(*map(_spread_first, groups)):
        for row in turn:
            if row is None or (row.index, row.sample) in chosen:
                continue
            left -= len(json_for_html(row.json()).encode())
            if left < 0:
                return [chosen[place] for place in sorted(chosen)]
            chosen[row.index, row.sample] = row
    return [chosen[place] for place in sorted(chosen)]


def _spread_first(rows: Sequence[Shown]) -> list[Shown]:
    """The rows in an order whose every beginning is spread over all of them: by their number's reversed bits."""
    bits = max(1, len(rows).bit_length())
    order = sorted(range(len(rows)), key=lambda number: f"{number:0{bits}b}"[::-1])
    return [rows[number] for number in order]
