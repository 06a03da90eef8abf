"""Engines that are threads, and meet faults by plan. When one is killed nothing of it is heard or written any more."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import threading
from collections.abc import Callable, Iterator
from typing import IO

import orjson

from tasks.engines.base import Ask, EngineDeadError, EngineSpec, EngineStats, Generated, Prepared
from tasks.engines.worker import Worker
from tasks.prompts.base import Parsed
from tasks.prompts.conversation import Conversation, text_of
from tasks.records import Json
from tasks.shard_store import ShardStore
from tasks.storage import LocalStorage
from tests.engines.fault_plan import IN_FLIGHT, Plan

HUNG_SECONDS = 60.0


class Killed(Exception):
    """The engine's process is no more."""


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
