"""The task of a shard, as Prefect sees it."""

from __future__ import annotations

from typing import Any

from prefect.utilities.collections import visit_collection

from tasks.config import EngineConfig
from tasks.engines.pool import EnginePool
from tasks.generate_shard import Job
from tasks.shard_board import ShardBoard
from tasks.shard_store import ShardStore
from tasks.storage import open_storage


def test_prefect_does_not_look_through_all_finished_shards_for_each(tmp_path: Any) -> None:
    """It looks for futures in a task's parameters: with 1,000 finished shards a million times."""
    store = ShardStore(open_storage(str(tmp_path)), "key")
    pool = EnginePool(None, EngineConfig())  # type: ignore[arg-type]  # no engine is asked for
    job = Job(store, pool, 1, ShardBoard((), {}), {})
    seen: list[Any] = []

    def see(value: Any) -> Any:
        seen.append(value)
        return value

    visit_collection({"job": job}, visit_fn=see, return_data=False)
    assert seen[-1] is job
    assert len([value for value in seen if value is not job]) <= 2, "the parameters and their name"
