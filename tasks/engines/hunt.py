"""The hunt for a record that kills its engine: what was in flight goes on in shrinking groups until it stands alone.

The culprit is in flight at each crash. With half as many records at once after each, it stands alone after log2(window)
restarts; when it has then ended an engine twice in the same way, all by itself, it is poison: an error row, and never
fed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tasks.records import Json, Shard

TIMES_ALONE = 2
"""Once may be chance: a `kill -9` from outside that met the one record in flight."""


@dataclass
class Hunt:
    """Records that were in flight at a crash and are not through yet; until they are, few are in flight at once."""

    suspects: set[int] = field(default_factory=set)
    records_at_once: int = 0

    def __bool__(self) -> bool:
        return bool(self.suspects)

    def join(self, other: Hunt) -> None:
        """Take another hunt's suspects too; the smaller group counts. One with none has no group."""
        if not other:
            return
        self.records_at_once = min(self.records_at_once, other.records_at_once) if self else other.records_at_once
        self.suspects |= other.suspects


class Hunts:
    """What all engines know together of the records that they died of."""

    def __init__(self) -> None:
        self.poison: dict[int, str] = {}
        self._alone: Counter[tuple[int, str]] = Counter()
        self._waiting: dict[int, Hunt] = {}

    def died(self, hunt: Hunt, in_flight: set[int], shards: Iterable[Shard], kind: str) -> int | None:
        """An engine died that hunted `hunt`. The suspects wait, by shard, for the engine that goes on with the shard.

        `kind` is the error kind, should a culprit be known now; it is returned.
        """
        found = self._found(in_flight, kind)
        if found is not None:
            return found  # the others are set free
        at_once = max(1, len(in_flight) // 2) if in_flight else hunt.records_at_once
        suspects = hunt.suspects | in_flight
        for shard in shards:
            if mine := {index for index in suspects if shard.start <= index < shard.start + shard.records}:
                self._waiting.setdefault(shard.index, Hunt()).join(Hunt(mine, at_once))
        return None

    def waits_in(self, shard: Shard) -> bool:
        """Whether suspects of a crash are among the shard's records."""
        return shard.index in self._waiting

    def resume(self, shard: Shard) -> Hunt:
        """The hunt that the engine must go on with which is given the shard; empty for most."""
        return self._waiting.pop(shard.index, None) or Hunt()

    def poison_in(self, shard: Shard) -> bool:
        """Whether the shard holds poison that its engine must not feed."""
        return any(shard.start <= index < shard.start + shard.records for index in self.poison)

    def command(self, hunt: Hunt) -> Json:
        """What an engine is told."""
        return {
            "suspects": sorted(hunt.suspects),
            "records_at_once": hunt.records_at_once,
            "poison": {str(index): kind for index, kind in self.poison.items()},
        }

    def _found(self, in_flight: set[int], kind: str) -> int | None:
        if len(in_flight) != 1:
            return None
        (index,) = in_flight
        self._alone[index, kind] += 1
        if self._alone[index, kind] < TIMES_ALONE:
            return None
        self.poison[index] = kind
        return index
