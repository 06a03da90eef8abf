"""The real pool, worker and feeder in one process, with engines that meet faults by plan, and a clock of their own.

An engine is a thread. When it is killed nothing of it is heard or written any more, as with a process. The pool's clock
stands still while anything happens and runs fast while nothing does, so that a hang is found in milliseconds and a busy
machine is never taken for one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from tasks.config import GenerateConfig
from tasks.engines import feeder, pool, slot, worker
from tasks.engines.base import EngineSpec
from tasks.engines.pool import EnginePool, ShardFailedError
from tasks.errors import RunError
from tasks.generate_shard import find_whole
from tasks.records import Shard
from tasks.shard_store import ShardStore
from tasks.split_dataset import split
from tasks.storage import open_storage
from tests.engines.fault_plan import Plan
from tests.engines.simulated_engines import SimLauncher, World

QUIET_SECONDS = 0.5
"""What the pool's clock gains in a look at which nothing has happened."""
MOST_ROUNDS = 12
MOST_SECONDS = 60.0


class Clock:
    """Stands in for the `time` module of the pool."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._now = 1000.0
        self._seen = -1

    def monotonic(self) -> float:
        return self._now

    def look(self) -> float:
        """The time, at a look of the pool at its engines."""
        if self._seen == self._world.events and not others_at_work():
            self._now += QUIET_SECONDS
        self._seen = self._world.events
        self._now += 0.001
        return self._now


def others_at_work() -> bool:
    """Whether another thread of this process runs, waits for a core (a busy machine lends none) or for the disk."""
    own = threading.get_native_id()
    others = (thread.native_id for thread in threading.enumerate())
    return any(number not in (None, own) and _state(number) in "RD" for number in others)


def _state(thread: int | None) -> str:
    try:
        stat = Path(f"/proc/self/task/{thread}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"  # it has just ended
    return stat.rpartition(")")[2].split()[0]


class Simulation:
    """A dataset, and runs of it until it is complete, whatever the plan has in store."""

    def __init__(self, folder: Path, plan: Plan, records: int, shard_size: int) -> None:
        folder.mkdir(parents=True)
        path = folder / "data.jsonl"
        path.write_bytes(b"".join(orjson.dumps({"prompt": f"prompt {i}"}) + b"\n" for i in range(records)))
        self.config = GenerateConfig.model_validate(
            {
                "model": {"source": "simulated"},
                "dataset": {"path": str(path), "shard_size": shard_size},
                "sampling": {"n": plan.n},
                "engine": {"max_num_seqs": plan.max_num_seqs, "stall_timeout": 20.0, "start_timeout": 20.0},
                "output": {"path": str(folder / "out"), "chunk_seconds": 0.01},
            }
        )
        self.world = World(plan)
        self.shards = split(self.config.dataset, plan.n, None).shards
        self.store = ShardStore(open_storage(self.config.output.path), "key")
        self.rounds = 0
        self.steps: list[str] = []

    def run(self) -> None:
        """Run again and again, as a person does who finds the flow dead, until all shards are whole."""
        while missing := self._missing():
            self.rounds += 1
            assert self.rounds <= MOST_ROUNDS, f"not complete after {MOST_ROUNDS} runs"
            self._run_once(missing)
            if self.world.flow_dead.is_set():
                self.world.flow_dead.clear()
                self._damage(self.world.damage)

    def rows(self, errors: bool = False) -> list[dict[str, Any]]:
        """All rows, in the order of the shards' files."""
        ending = ".errors.jsonl" if errors else ".jsonl"
        files = (self.store.storage.read(f"{self.store.folder}/{shard.name}{ending}") for shard in self.shards)
        return [orjson.loads(line) for content in files for line in content.splitlines()]

    def _missing(self) -> list[Shard]:
        whole, _ = find_whole(self.store, self.shards, self.config.sampling.n)
        return [shard for shard in self.shards if shard.index not in whole]

    def _run_once(self, missing: list[Shard]) -> None:
        spec = EngineSpec(number=0, config=self.config, model_path="", key="key")
        launcher = SimLauncher(self.world, spec, self.world.plan.replicas)
        engines = EnginePool(launcher, self.config.engine)
        with ThreadPoolExecutor(len(missing)) as threads:
            try:
                tasks = [threads.submit(self._task, engines, shard) for shard in missing]
                deadline = time.monotonic() + MOST_SECONDS
                while not all(task.done() for task in tasks) and not self.world.flow_dead.is_set():
                    assert time.monotonic() < deadline, f"hangs: {engines.view()}"
                    time.sleep(0.002)
            finally:
                if not (self.world.flow_dead.is_set() and self.world.damage == "stopped"):
                    launcher.kill_all()
                engines.close()
        self.steps += engines.view().steps
        for task in tasks:
            task.result()

    def _task(self, engines: EnginePool, shard: Shard) -> None:
        """As Prefect does: tried again, unless a person must act."""
        for _ in range(4):
            try:
                engines.generate(shard)
            except ShardFailedError:
                time.sleep(0.005)
            except RunError:
                return
            else:
                return

    def _damage(self, how: str) -> None:
        """What a power cut or a person did to the files while no flow was there."""
        folder = Path(self.config.output.path, self.store.folder)
        chunks, shards = sorted(folder.glob("*/chunk-*")), sorted(folder.glob("?????.jsonl"))
        if how == "chunk_torn" and chunks:
            chunks[-1].write_bytes(chunks[-1].read_bytes()[:-20])
        elif how == "chunk_lost" and chunks:
            chunks[-1].unlink()
        elif how == "shard_edited" and shards:
            shards[0].write_bytes(shards[0].read_bytes().replace(b"prompt", b"Prompt", 1))
        elif how == "shard_deleted" and shards:
            shards[0].unlink()
        self._look_what_is_left(folder)

    def _look_what_is_left(self, folder: Path) -> None:
        whole, _ = find_whole(self.store, self.shards, self.config.sampling.n)
        rows = [row.row for shard in self.shards for row in self.store.chunk_rows(shard)]
        for index in whole:
            rows += [orjson.loads(line) for line in (folder / f"{index:05d}.jsonl").read_bytes().splitlines()]
        self.world.durable = {(row["original_index"], row["sample_id"]) for row in rows}


@contextlib.contextmanager
def simulated_time(simulation: Simulation) -> Iterator[None]:
    """The pool lives by the simulation's clock; nothing waits for the disk."""
    clock = Clock(simulation.world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "time", SimpleNamespace(monotonic=clock.look))
        patch.setattr(slot, "time", clock)
        patch.setattr(pool, "TICK_SECONDS", 0.001)
        patch.setattr(feeder, "WRITE_DELAY", 0.005)
        patch.setattr(worker, "STATS_SECONDS", 0.005)
        patch.setattr(os, "fsync", lambda _: None)
        yield
