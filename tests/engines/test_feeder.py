"""The order in which records enter the engine, and what is left of those that it is stopped amid."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from tasks.config import GenerateConfig
from tasks.engines.base import Ask, EngineDeadError, EngineStats, Generated, Prepared
from tasks.engines.feeder import Feeder, longest_first
from tasks.engines.shard_work import Owed
from tasks.prompts.base import Parsed
from tasks.prompts.conversation import Conversation, text_of
from tasks.records import BadRecord, Json, Record, RecordError
from tasks.shard_store import ShardStore
from tasks.split_dataset import split
from tasks.storage import open_storage


def test_where_records_tell_their_length_the_longest_go_first() -> None:
    lengths = [5, None, 700, "x", 40, *[7] * 14]
    owed = [Owed(Record(i, "", "", {"max": value}), (0,)) for i, value in enumerate(lengths)]
    owed.append(Owed(BadRecord(19, "", "", RecordError("malformed_record", "no")), (0,)))
    order = [o.record.original_index for o in longest_first(owed, "max")]
    assert order == [2, 4, 0, 1, 3, *range(5, 20)]


class _FragileEngine:
    """Answers `quick`, waits long for `slow` and breaks when that is cut short, dies of `fatal`."""

    def __init__(self) -> None:
        self.max_num_seqs = 8
        self.facts: Json = {}

    def prepare(self, conversation: Conversation) -> Prepared:
        return Prepared(text_of(conversation.messages[-1]["content"]), None)

    async def generate(self, request_id: str, prepared: Prepared, ask: Ask) -> list[Generated]:
        if prepared.text == "fatal":
            await asyncio.sleep(0.05)
            raise EngineDeadError("gone")
        try:
            await asyncio.sleep(3600 if prepared.text == "slow" else 0)
        except asyncio.CancelledError:
            raise RuntimeError("a lock that was let go twice") from None
        return [Generated(Parsed("yes", None, "stop"), 1, 1)] * ask.n

    def stats(self) -> EngineStats:
        return EngineStats()

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("prompts", [["quick", "slow", "slow"], ["quick", "slow", "fatal"]])
def test_what_a_shutdown_breaks_off_is_owed_and_no_error_row(tmp_path: Path, prompts: list[str]) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(orjson.dumps({"prompt": prompt}) for prompt in prompts))
    config = GenerateConfig.model_validate(
        {
            "model": {"source": "m"},
            "dataset": {"path": str(tmp_path / "data.jsonl")},
            "output": {"path": str(tmp_path / "out")},
        }
    )
    store = ShardStore(open_storage(config.output.path), "key")
    (shard,) = split(config.dataset, 1, None).shards
    events: list[Json] = []

    async def run() -> None:
        feeder = Feeder(_FragileEngine(), "engine-0", config, store, events.append)
        feeder.add(shard)
        feeding = asyncio.create_task(feeder.run())
        while not any(event["event"] == "rows" for event in events):
            await asyncio.sleep(0.01)
        if "fatal" not in prompts:
            feeding.cancel()
        with pytest.raises((asyncio.CancelledError, EngineDeadError)):
            await feeding

    asyncio.run(run())
    assert [(row.place, row.is_error) for row in store.chunk_rows(shard)] == [((0, 0), False)]
    assert [event["record"] for event in events if event["event"] == "end"] == [0]
