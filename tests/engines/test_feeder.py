"""The order in which records enter the engine."""

from __future__ import annotations

from tasks.engines.feeder import longest_first
from tasks.engines.shard_work import Owed
from tasks.records import BadRecord, Record, RecordError


def test_where_records_tell_their_length_the_longest_go_first() -> None:
    lengths = [5, None, 700, "x", 40, *[7] * 14]
    owed = [Owed(Record(i, "", "", {"max": value}), (0,)) for i, value in enumerate(lengths)]
    owed.append(Owed(BadRecord(19, "", "", RecordError("malformed_record", "no")), (0,)))
    order = [o.record.original_index for o in longest_first(owed, "max")]
    assert order == [2, 4, 0, 1, 3, *range(5, 20)]
