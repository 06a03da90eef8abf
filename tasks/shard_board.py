"""Where each shard of a run stands, for those who watch."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.engines.view import ShardView
from tasks.records import Json, Shard, ShardManifest

MOST_ROWS = 1000
_FIRST = ("failed", "generating")


@dataclass(slots=True)
class _Row:
    shard: Shard
    state: str = "waiting"
    samples: int | str = ""
    errors: int | str = ""
    seconds: float | str = ""
    engine: str = ""
    note: str = ""

    def cells(self) -> Json:
        last = self.shard.start + self.shard.records - 1
        return {
            "shard": self.shard.name,
            "records": f"{self.shard.start}–{last}",
            "state": self.state,
            "samples": self.samples,
            "errors": self.errors,
            "seconds": self.seconds,
            "engine": self.engine,
            "note": self.note,
        }


class ShardBoard:
    """Told by the shard tasks, from any thread: `begin`, then `finish` or `fail`. `whole` were finished before."""

    def __init__(self, shards: Iterable[Shard], whole: Mapping[int, ShardManifest]) -> None:
        self._lock = threading.Lock()
        self._rows = {shard.index: _Row(shard) for shard in shards}
        for manifest in whole.values():
            self._finished(manifest, "cached")

    def finish(self, manifest: ShardManifest) -> None:
        self._finished(manifest, "finished")

    def fail(self, shard: Shard, error: Exception) -> None:
        """This try failed; `begin` of the next one may follow."""
        with self._lock:
            row = self._rows[shard.index]
            row.state, row.note = "failed", " ".join(str(error).split())[:200]

    def begin(self, shard: Shard) -> None:
        """The shard waits for an engine, or is with one."""
        with self._lock:
            if self._rows[shard.index].state == "failed":
                self._rows[shard.index].state = "waiting"

    def under_way(self, shards: Mapping[int, ShardView]) -> None:
        """What the engines have in hand, and how far they are."""
        with self._lock:
            for row in self._rows.values():
                if row.state in ("waiting", "generating"):
                    row.state = "generating" if row.shard.index in shards else "waiting"
            for index, view in shards.items():
                row = self._rows[index]
                if row.state == "generating":
                    row.samples, row.errors, row.engine = view.samples, view.errors, f"engine-{view.engine}"

    def counts(self) -> dict[str, int]:
        """Shards by state."""
        with self._lock:
            return dict(Counter(row.state for row in self._rows.values()))

    def sentence(self) -> str:
        """`120 shards: 5 cached, 40 finished, 75 waiting`; says so where the table leaves rows out."""
        counts = self.counts()
        total = sum(counts.values())
        told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        return f"{total} shards: {told}" + (f"; {MOST_ROWS} rows shown" if total > MOST_ROWS else "")

    def table(self) -> list[Json]:
        """A row a shard, in order; of more than MOST_ROWS, the failed ones first, then as many others as fit."""
        with self._lock:
            rows = list(self._rows.values())
            if len(rows) > MOST_ROWS:
                rows = sorted(sorted(rows, key=lambda row: row.state not in _FIRST)[:MOST_ROWS], key=_index)
            return [row.cells() for row in rows]

    def _finished(self, manifest: ShardManifest, state: str) -> None:
        with self._lock:
            row = self._rows[manifest.index]
            row.state, row.note, row.engine = state, "", manifest.engine
            row.samples, row.errors = manifest.tally.samples, manifest.tally.errors
            row.seconds = round(manifest.seconds, 1)


def _index(row: _Row) -> int:
    return row.shard.index
