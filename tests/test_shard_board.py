from __future__ import annotations

from pathlib import Path

from tasks import shard_board
from tasks.config import ValidationConfig
from tasks.engines.view import ShardView
from tasks.shard_board import ShardBoard
from tasks.storage import LocalStorage
from tests.shards import dataset_of, finish_shard


def test_a_shard_goes_from_waiting_over_failed_to_finished(tmp_path: Path) -> None:
    storage, dataset = LocalStorage(str(tmp_path)), dataset_of(120, 40)
    cached = finish_shard(storage, dataset.shards[0], 2, ValidationConfig())
    board = ShardBoard(dataset.shards, {0: cached})
    assert [row["state"] for row in board.table()] == ["cached", "waiting", "waiting"]
    board.begin(dataset.shards[1])
    board.fail(dataset.shards[1], OSError("disk\nfull"))
    assert board.table()[1]["state"] == "failed"
    assert board.table()[1]["note"] == "disk full"
    board.begin(dataset.shards[1])
    board.under_way({1: ShardView(engine=3, samples=7, errors=1)})
    row = board.table()[1]
    assert (row["state"], row["samples"], row["errors"], row["engine"]) == ("generating", 7, 1, "engine-3")
    board.finish(finish_shard(storage, dataset.shards[1], 2, ValidationConfig()))
    row = board.table()[1]
    assert (row["state"], row["records"], row["samples"], row["errors"], row["note"]) == (
        "finished",
        "40–79",
        78,
        2,
        "",
    )
    assert board.sentence() == "3 shards: 1 cached, 1 finished, 1 waiting"


def test_of_too_many_shards_the_failed_are_shown(tmp_path: Path) -> None:
    dataset = dataset_of(3000, 2)
    board = ShardBoard(dataset.shards, {})
    board.fail(dataset.shards[1400], OSError("x"))
    table = board.table()
    assert len(table) == shard_board.MOST_ROWS
    assert [row["shard"] for row in table if row["state"] == "failed"] == ["01400"]
    assert "1000 rows shown" in board.sentence()
