"""The order in which records enter the engine, what they tell it, what of them is written, and what a stop leaves."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import orjson
import pytest

from tasks.config import GenerateConfig
from tasks.engines.base import Ask, EngineDeadError, EngineSpec, EngineStats, Generated, Prepared
from tasks.engines.feeder import Feeder
from tasks.engines.lengths import longest_first, own_max_tokens
from tasks.engines.shard_work import Owed
from tasks.prompts.base import Parsed
from tasks.prompts.conversation import Conversation, text_of
from tasks.records import BadRecord, Json, Record, RecordError
from tasks.shard_store import ShardStore
from tasks.split_dataset import split
from tasks.storage import open_storage
from tests.fake_engine import FakeEngine
from tests.inputs.tables import write_table


def test_where_records_tell_their_length_the_longest_go_first() -> None:
    lengths = [5, None, "700", "x", 40.0, *[7] * 14]
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


@pytest.mark.parametrize(
    ("value", "expected"), [(8, 8), ("8", 8), (" 8 ", 8), (8.0, 8), ("", None), (" ", None), (None, None)]
)
def test_a_recordsown_max_tokens(value: Any, expected: int | None) -> None:
    assert own_max_tokens({"max": value}, "max", "line 1") == expected


@pytest.mark.parametrize("value", [0, -1, True, 8.5, float("inf"), "x", "8.0", "-8", "0", "9" * 5000, [8]])
def test_max_tokens_that_are_no_whole_number(value: Any) -> None:
    with pytest.raises(RecordError, match="line 1: 'max' must be a whole number above 0, got"):
        own_max_tokens({"max": value}, "max", "line 1")


def test_bytes_of_a_record_are_written_as_base64(tmp_path: Path) -> None:
    image = {"bytes": b"\x89PNG\xff", "path": "a.png"}
    path = write_table(tmp_path / "data.parquet", [{"prompt": "a", "id": b"1", "label": b"yes", "pictures": [image]}])
    sections = {"model": {"source": "m"}, "dataset": {"path": str(path)}}
    output = {"path": str(tmp_path / "out"), "keep_fields": ["pictures"]}
    (row,) = asyncio.run(rows_of(GenerateConfig.model_validate(sections | {"output": output})))
    written = image | {"bytes": base64.b64encode(b"\x89PNG\xff").decode()}
    assert (row["id"], row["label"], row["pictures"]) == ("MQ==", "eWVz", [written])


async def rows_of(config: GenerateConfig) -> list[Json]:
    """What a feeder makes of the first shard."""
    (shard,) = split(config.dataset, 1).shards
    store, done = ShardStore(open_storage(config.output.path), "key"), asyncio.Event()
    engine = FakeEngine(EngineSpec(number=0, config=config, model_path="", key=store.key))
    feeder = Feeder(engine, "engine", config, store, lambda event: done.set() if "manifest" in event else None)
    feeder.add(shard)
    running = asyncio.create_task(feeder.run())
    await asyncio.wait_for(done.wait(), 30)
    running.cancel()
    content = store.storage.read(f"{store.folder}/{shard.name}.jsonl")
    return [orjson.loads(line) for line in content.splitlines()]
