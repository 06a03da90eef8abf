"""generate_shard: one shard through the engine pool. Prefect caches it by content, so a finished shard never reruns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext
from prefect.states import Cancelled

from tasks.engines.pool import EnginePool, RunStoppedError
from tasks.records import Json, Shard, ShardManifest
from tasks.retries import retried
from tasks.shard_board import ShardBoard
from tasks.shard_store import ShardStore

_CACHE_VERSION = 1


class Job:
    """What all shards of a run share. `whole` are the finished shards, their files checked; `board` is told.

    No dataclass: into those Prefect looks for futures, into all finished shards for each of them.
    """

    def __init__(
        self, store: ShardStore, pool: EnginePool, n: int, board: ShardBoard, whole: Mapping[int, ShardManifest]
    ) -> None:
        self.store = store
        self.pool = pool
        self.n = n
        self.board = board
        self.whole = whole


def cache_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Content and settings: the shard's bytes, its place in the dataset, n, and the results' key."""
    shard, job = parameters["shard"], parameters["job"]
    return f"shard-{_CACHE_VERSION}-{job.store.key}-{job.n}-{shard.index}-{shard.start}-{shard.records}-{shard.sha256}"


@task(
    name="generate_shard",
    description="Generate n samples of each record of one shard on the engine pool.",
    tags=["generate"],
    task_run_name="generate_shard-{shard.name}",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=cache_key),
    persist_result=True,
    result_serializer="json",
    **retried(3, 2.0),
)
def generate_shard(shard: Shard, job: Job) -> Json:
    """The shard's manifest. A shard whose files are there, whole, is taken as it is; a stopped run's is Cancelled."""
    try:
        manifest = job.whole.get(shard.index) or _generate(shard, job)
    except RunStoppedError:
        # A state as the return value is Prefect's way to end a task in it.
        return Cancelled(message="The run was stopped; what is made is kept.")  # type: ignore[return-value]
    return manifest.model_dump(mode="json")


def _generate(shard: Shard, job: Job) -> ShardManifest:
    job.board.begin(shard)
    try:
        manifest = job.pool.generate(shard)
    except Exception as error:
        job.board.fail(shard, error)
        raise
    job.board.finish(manifest)
    return manifest


def find_whole(store: ShardStore, shards: Iterable[Shard], n: int) -> tuple[dict[int, ShardManifest], list[str]]:
    """The finished shards whose files have the sizes and hashes of their manifests; and, in words, what was damaged."""

    def look(shard: Shard) -> tuple[int, ShardManifest | None, str | None]:
        manifest = store.manifest(shard, n)
        return shard.index, manifest, store.damage(manifest) if manifest else None

    with ThreadPoolExecutor(4, "check") as threads:
        looks = list(threads.map(look, shards))
    whole = {index: manifest for index, manifest, damage in looks if manifest and not damage}
    return whole, [damage for _, _, damage in looks if damage]
