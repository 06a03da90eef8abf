"""The real pool, worker and feeder in one process, with engines that meet faults by plan, and a clock of their own.

An engine is a thread. When it is killed nothing of it is heard or written any more, as with a process. The pool's clock
stands still while anything happens and runs fast while nothing does, so that a hang is found in milliseconds and a busy
machine is never taken for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import orjson
import pytest

from tasks.config import GenerateConfig
from tasks.engines import feeder, pool, slot, worker
from tasks.engines.base import Ask, EngineDeadError, EngineSpec, EngineStats, Generated, Prepared
from tasks.engines.pool import EnginePool, ShardFailedError
from tasks.engines.worker import Worker
from tasks.errors import RunError
from tasks.generate_shard import find_whole
from tasks.prompts.base import Parsed
from tasks.prompts.conversation import Conversation, text_of
from tasks.records import Json, Shard
from tasks.shard_store import ShardStore
from tasks.split_dataset import split
from tasks.storage import LocalStorage, open_storage

QUIET_SECONDS = 0.5
"""What the pool's clock gains in a look at which nothing has happened."""


HUNG_SECONDS = 60.0
MOST_ROUNDS = 12
MOST_SECONDS = 60.0


class Killed(Exception):
    """The engine's process is no more."""


@dataclass
class Fault:
    """`kind` happens to the engine that comes by after so many records are made in all."""

    kind: str
    after: int
    times: int = 1


@dataclass
class Plan:
    """A schedule of faults. `poison` maps records to `crash`, `error` or `hang`."""

    seed: int
    replicas: int
    n: int
    max_num_seqs: int
    faults: list[Fault]
    poison: dict[int, str] = field(default_factory=dict)

    @classmethod
    def draw(cls, seed: int, records: int) -> Plan:
        """The schedule of a seed."""
        dice = random.Random(seed)
        faults, after = [], 0
        for _ in range(dice.randint(1, 5)):
            after += dice.randint(4, records // 3)
            faults.append(Fault(dice.choice(KINDS), after, dice.randint(1, 3)))
        poison = {dice.randrange(records): dice.choice(["crash", "error", "hang"]) for _ in range(dice.randint(0, 2))}
        return cls(seed, dice.randint(1, 3), dice.randint(1, 3), dice.choice([1, 2, 4, 8, 16]), faults, poison)


IN_FLIGHT = [
    "kill", "cuda_error", "hang", "unending_hang", "nonsense", "flow_stopped", "flow_killed", "flow_killed_chunk_torn",
    "flow_killed_chunk_lost", "flow_killed_shard_edited", "flow_killed_shard_deleted",
]  # fmt: skip
ELSEWHERE = [
    "hang_prepare", "hang_read", "kill_before_chunk", "kill_after_chunk", "kill_in_finish", "no_space", "start_fails",
    "start_hangs", "start_out_of_memory",
]  # fmt: skip
KINDS = ["kill", "kill", *IN_FLIGHT, *ELSEWHERE]


class World:
    """What all engines of a simulation share: the plan, what has been made, and what stands in chunks."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.made = 0
        self.events = 0
        self.durable: set[tuple[int, int]] = set()
        self.twice: list[tuple[int, int]] = []
        self.flow_dead = threading.Event()
        self.damage = ""
        self._faults = list(plan.faults)
        self._struck: set[int] = set()
        self._lock = threading.Lock()

    def generated(self, places: set[tuple[int, int]]) -> None:
        """These samples are made; those that stood in a chunk before are noted, for nothing is paid for twice."""
        with self._lock:
            self.made += 1
            self.events += 1
            self.twice += sorted(places & self.durable)

    def fault(self, engine: SimHandle, *kinds: str) -> str | None:
        """The fault of one of these kinds that is due now, if any; it has happened then.

        None strikes twice where a record is alone: that would be poison.
        """
        with self._lock:
            for fault in self._faults:
                if fault.kind in kinds and self.made >= fault.after:
                    if len(engine.in_flight) == 1 and engine.in_flight <= self._struck:
                        return None
                    self._struck |= engine.in_flight
                    fault.times -= 1
                    if fault.times <= 0 or fault.kind != "no_space":
                        self._faults.remove(fault)
                    return fault.kind
        return None


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
        if self._seen == self._world.events:
            self._now += QUIET_SECONDS
        self._seen = self._world.events
        self._now += 0.001
        return self._now


class SimStorage(LocalStorage):
    """The disk as one engine sees it."""

    def __init__(self, root: str, engine: SimHandle) -> None:
        super().__init__(root)
        self._engine = engine
        self._world = engine.world

    def names(self, folder: str) -> list[str]:
        self._engine.come_by("hang_read")
        return super().names(folder)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[IO[bytes]]:
        chunk = "chunk-" in name
        self._engine.come_by("kill_before_chunk" if chunk else "kill_in_finish")
        if self._world.fault(self._engine, "no_space"):
            raise OSError(28, "No space left on device")
        content = io.BytesIO()
        yield content
        with self._engine.disk:
            if self._engine.dead.is_set():
                raise Killed
            with super().writer(name) as file:
                file.write(content.getvalue())
            if chunk:
                rows = (orjson.loads(line)["row"] for line in content.getvalue().splitlines())
                self._world.durable |= {(row["original_index"], row["sample_id"]) for row in rows}
        if chunk:
            self._engine.come_by("kill_after_chunk")


class SimHandle:
    """An engine: a thread that can be killed."""

    log_path = "simulated"

    def __init__(self, world: World, spec: EngineSpec, tell: Callable[[Json], None]) -> None:
        self.world = world
        self.dead = threading.Event()
        self.disk = threading.Lock()
        self.in_flight: set[int] = set()
        self.stuck = False
        self._spec = spec
        self._tell = tell
        self._loop = asyncio.new_event_loop()
        self._commands: asyncio.Queue[Json] = asyncio.Queue()
        self._worker = SimWorker(spec, self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, command: Json) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._commands.put_nowait, command)

    def end(self, grace: float) -> None:
        if self.stuck:
            return
        if grace > 2.0:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._worker.stop)
            self._thread.join(0.3)
        self.kill()

    def emit(self, event: Json) -> None:
        if self.dead.is_set():
            return
        if event["event"] != "stats":
            self.world.events += 1
        if event["event"] == "begin":
            self.in_flight.add(event["record"])
        elif event["event"] == "end":
            self.in_flight.discard(event["record"])
        self._tell(event)

    def kill(self) -> None:
        """As kill -9 does; the exit is heard, whatever comes after is not."""
        with self.disk:
            if self.dead.is_set():
                return
            self.dead.set()
        self.world.events += 1
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._tell({"event": "exit", "message": "killed by signal 9"})

    def come_by(self, *kinds: str) -> None:
        """Where a thread of the engine may meet a fault."""
        if (kind := self.world.fault(self, *kinds)) and self.meet(kind):
            self.dead.wait(HUNG_SECONDS)
        if self.dead.is_set():
            raise Killed

    def meet(self, kind: str) -> bool:
        """A fault happens; whether the engine hangs from now on."""
        if kind == "nonsense":
            for event in ({"event": "shard_done", "shard": 0}, {"event": "begin"}, {"event": "no such"}, {}):
                self._tell(event)
            return False
        if kind.startswith("flow"):
            self.world.damage = kind.removeprefix("flow_killed").removeprefix("flow_").removeprefix("_")
            self.world.flow_dead.set()
            return kind != "flow_stopped"
        if "hang" in kind:
            self.stuck = kind == "unending_hang"
            return True
        self.kill()
        return False

    def join(self) -> None:
        self._thread.join(10)

    @property
    def commands(self) -> asyncio.Queue[Json]:
        return self._commands

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._worker.run(self._start))
        with contextlib.suppress(asyncio.CancelledError, Killed):
            self._loop.run_until_complete(self._task)
        self.kill()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _start(self, spec: EngineSpec) -> SimEngine:
        if self.world.fault(self, "start_fails"):
            raise RuntimeError("cannot bind to a port")
        if self.world.fault(self, "start_out_of_memory"):
            raise RuntimeError("CUDA out of memory")
        if self.world.fault(self, "start_hangs"):
            await asyncio.sleep(HUNG_SECONDS)
        return SimEngine(spec, self)


class SimWorker(Worker):
    """The worker, heard and told without pipes."""

    def __init__(self, spec: EngineSpec, handle: SimHandle) -> None:
        super().__init__(spec, None)  # type: ignore[arg-type]
        self._handle = handle

    def stop(self) -> None:
        self._stop.set()

    def _attach(self, loop: asyncio.AbstractEventLoop) -> asyncio.Queue[Json]:
        return self._handle.commands

    def _open_store(self) -> ShardStore:
        return ShardStore(SimStorage(self._spec.config.output.path, self._handle), self._spec.key)

    def _emit(self, event: Json) -> None:
        self._handle.emit(event)

    def _fatal(self, kind: str, error: BaseException) -> None:
        self._handle.emit({"event": "fatal", "kind": kind, "message": f"{type(error).__name__}: {error}"})

    def _end_group(self) -> None:
        return None


class SimEngine:
    """Answers with the prompt, at once or a little later."""

    def __init__(self, spec: EngineSpec, handle: SimHandle) -> None:
        self.max_num_seqs: int = spec.overrides.get("max_num_seqs") or spec.config.engine.max_num_seqs or 4
        self.facts: Json = {"max_num_seqs": self.max_num_seqs}
        self._handle = handle
        self._world = handle.world
        self._tokens = 0
        self._hung = False
        self._dice = random.Random(self._world.plan.seed)

    def prepare(self, conversation: Conversation) -> Prepared:
        if conversation.where != "first token":
            self._handle.come_by("hang_prepare")
        return Prepared(text=text_of(conversation.messages[-1]["content"]), payload=conversation.where)

    async def generate(self, request_id: str, prepared: Prepared, ask: Ask) -> list[Generated]:
        if prepared.payload == "first token":
            return []
        index = int(prepared.text.split()[-1])
        await asyncio.sleep(self._dice.choice([0, 0, 0.001, 0.003]))
        await self._meet(self._world.plan.poison.get(index) or self._world.fault(self._handle, *IN_FLIGHT))
        first = int(request_id.partition(".")[2] or 0)
        self._world.generated({(index, first + i) for i in range(ask.n)})
        self._tokens += ask.n
        return [Generated(Parsed(f"{prepared.text} {first + i}", None, "stop"), 1, 1) for i in range(ask.n)]

    async def _meet(self, kind: str | None) -> None:
        if kind in ("error", "cuda_error"):
            raise EngineDeadError("CUDA error: an illegal memory access was encountered")
        if kind is not None and self._handle.meet(kind):
            self._hung = True
        if self._hung or self._handle.dead.is_set():
            await asyncio.sleep(HUNG_SECONDS)  # until it is cancelled

    def stats(self) -> EngineStats:
        return EngineStats(tokens=self._tokens)

    async def close(self) -> None:
        return None


class SimLauncher:
    """Starts simulated engines."""

    def __init__(self, world: World, spec: EngineSpec, slots: int) -> None:
        self.slots = slots
        self.trouble: str | None = None
        self.handles: list[SimHandle] = []
        self._world = world
        self._spec = spec
        self._closed = False

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> SimHandle:
        if self._closed:
            raise OSError("the flow is dead")
        spec = self._spec.model_copy(update={"number": slot, "overrides": overrides})
        handle = SimHandle(self._world, spec, tell)
        self.handles.append(handle)
        return handle

    def kill_all(self) -> None:
        """As the keeper does when the flow was killed."""
        self._closed = True
        for handle in self.handles:
            handle.kill()

    def close(self) -> None:
        self.kill_all()
        for handle in self.handles:
            handle.join()


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
