"""What the pool makes of events that an engine should not send."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tasks.config import EngineConfig
from tasks.engines.pool import EnginePool, ShardFailedError
from tasks.records import Json, Shard
from tests.shards import dataset_of


class OddEngine:
    """Gives a manifest that nobody can read for each shard."""

    log_path = "engine.log"

    def __init__(self, tell: Callable[[Json], None]) -> None:
        self._tell = tell
        tell({"event": "ready", "facts": {}})
        tell({"event": "want"})

    def send(self, command: Json) -> None:
        if "shard" in command:
            shard = Shard.model_validate(command["shard"])
            threading.Timer(0, self._tell, [{"event": "shard_done", "shard": shard.index, "manifest": {}}]).start()

    def end(self, grace: float) -> None:
        return None


class OddLauncher:
    slots = 1
    trouble = None

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> OddEngine:
        return OddEngine(lambda event: threading.Timer(0.2, tell, [event]).start())

    def close(self) -> None:
        return None


def test_a_manifest_that_cannot_be_read_fails_its_shard() -> None:
    pool = EnginePool(OddLauncher(), EngineConfig())
    try:
        with pytest.raises(ShardFailedError, match="engine 0 gave a manifest that cannot be read"):
            pool.generate(dataset_of(10, 10).shards[0])
    finally:
        pool.close()
