"""An engine's own process: `python -m tasks.engines.worker`, a spec and commands in on stdin, events out on stdout.

All lines are JSON. First in: the EngineSpec. Then `{"shard": …}`, `{"hunt": …}` and `{"stop": true}`. Out: what the
feeder emits, `ready`, `stats` once a second and with each shard, `fatal`. What libraries print goes to the log
(stderr), never among the events. When the flow goes away (end of stdin, SIGTERM, the parent-death signal), what is
made is written to chunks, and the whole process group ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import IO

import orjson

from tasks.engines import keeper, lifeline
from tasks.engines.base import Ask, Engine, EngineDeadError, EngineSpec
from tasks.engines.devices import visible_gpus
from tasks.engines.feeder import Feeder
from tasks.engines.root_cause import log_position, root_cause
from tasks.engines.vllm_args import cpu_environment
from tasks.engines.worker_process import AHEAD
from tasks.prompts.conversation import Conversation
from tasks.records import Json, Shard
from tasks.shard_store import ShardStore
from tasks.storage import open_storage

STATS_SECONDS = 1.0
CLOSE_SECONDS = 3.0

StartEngine = Callable[[EngineSpec], Awaitable[Engine]]


def main(start: StartEngine | None = None) -> None:
    """Be an engine until told to stop. `start` makes the engine; tests give one of their own."""
    lifeline.on_parent_death(signal.SIGTERM)
    os.environ[lifeline.ENGINE_PID] = str(os.getpid())
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    spec = _read_spec()
    if not visible_gpus():
        os.environ.update(cpu_environment(spec.config.engine))
    asyncio.run(Worker(spec, events).run(start or start_engine))


def _read_spec() -> EngineSpec:
    """The spec on stdin. An engine started ahead of it imports vLLM meanwhile, and ends with its flow at once."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        line = sys.stdin.buffer.readline()
        if not line:
            os._exit(0)
        lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    if AHEAD in sys.argv:
        import tasks.engines.vllm_engine  # noqa: F401
    return EngineSpec.model_validate_json(lines.get())


async def start_engine(spec: EngineSpec) -> Engine:
    """The engine of `engine.kind`."""
    if spec.config.engine.kind == "openai":
        from tasks.engines.openai_engine import OpenAIEngine

        return await OpenAIEngine.start(spec)
    from tasks.engines.vllm_engine import VLLMEngine

    return await VLLMEngine.start(spec)


async def _first_token(engine: Engine) -> None:
    """An engine that has made a token works; one that dies of its very first would else be taken for poisoned."""
    hello = [{"role": "user", "content": "Hello"}]
    try:
        prepared = await asyncio.to_thread(engine.prepare, Conversation("prompt", hello, None, None, "first token"))
        await engine.generate("first-token", prepared, Ask(n=1, max_tokens=1))
    except EngineDeadError:
        raise
    except Exception as error:  # it says nothing of the engine: this model wants other prompts
        print(f"no first token: {type(error).__name__}: {error}", file=sys.stderr)


class Worker:
    """One engine's life, from its start to its last event."""

    def __init__(self, spec: EngineSpec, events: IO[bytes]) -> None:
        self._spec = spec
        self._events = events
        self._lock = threading.Lock()
        self._stop = asyncio.Event()
        self._log_start = log_position()

    async def run(self, start: StartEngine) -> None:
        commands = self._attach(asyncio.get_running_loop())
        try:
            engine = await start(self._spec)
            if self._spec.config.engine.kind == "vllm":
                await _first_token(engine)
        except BaseException as error:
            self._fatal("start_failed", error)
        else:
            self._emit({"event": "ready", "max_num_seqs": engine.max_num_seqs, "facts": engine.facts})
            await self._feed(engine, commands)
        self._end_group()

    def _attach(self, loop: asyncio.AbstractEventLoop) -> asyncio.Queue[Json]:
        """Listen to signals and to stdin; the commands that will come in."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        commands: asyncio.Queue[Json] = asyncio.Queue()
        threading.Thread(target=self._listen, args=(loop, commands), daemon=True).start()
        return commands

    def _open_store(self) -> ShardStore:
        return ShardStore(open_storage(self._spec.config.output.path), self._spec.key)

    async def _feed(self, engine: Engine, commands: asyncio.Queue[Json]) -> None:
        tell_stats = self._stats_teller(engine)

        def emit(event: Json) -> None:
            if event["event"] == "shard_done":  # a run may end with it, and its figures are to be whole
                tell_stats(feeder)
            self._emit(event)

        async def tell_stats_often() -> None:
            while True:
                tell_stats(feeder)
                await asyncio.sleep(STATS_SECONDS)

        feeder = Feeder(engine, f"engine-{self._spec.number}", self._spec.config, self._open_store(), emit)
        coroutines = (feeder.run(), self._obey(feeder, commands), tell_stats_often(), self._stop.wait())
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for error in (task.exception() for task in ended):
            if error is not None:
                self._fatal("engine_died", error)
        feeding = tasks[0]
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        self._emit({"event": "stopped"})
        with contextlib.suppress(Exception):
            await asyncio.wait_for(asyncio.to_thread(lambda: asyncio.run(engine.close())), CLOSE_SECONDS)

    async def _obey(self, feeder: Feeder, commands: asyncio.Queue[Json]) -> None:
        while "stop" not in (command := await commands.get()):
            if "shard" in command:
                feeder.add(Shard.model_validate(command["shard"]))
            elif hunt := command.get("hunt"):
                poison = {int(index): kind for index, kind in hunt["poison"].items()}
                feeder.hunt(hunt["suspects"], hunt["records_at_once"], poison)
        self._stop.set()

    def _stats_teller(self, engine: Engine) -> Callable[[Feeder], None]:
        """What tells the engine's figures, its tokens counted from now on."""
        before = engine.stats().tokens

        def tell(feeder: Feeder) -> None:
            stats = engine.stats()
            self._emit(
                {
                    "event": "stats",
                    "tokens": stats.tokens - before,
                    "running": stats.running,
                    "waiting": stats.waiting,
                    "kv_cache_usage": round(stats.kv_cache_usage, 4),
                    "idle_seconds": stats.idle_seconds,
                    "in_flight": feeder.in_flight,
                    "progress": feeder.progress,
                    **stats.detail,
                }
            )

        return tell

    def _listen(self, loop: asyncio.AbstractEventLoop, commands: asyncio.Queue[Json]) -> None:
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(commands.put_nowait, orjson.loads(line))
        loop.call_soon_threadsafe(self._stop.set)

    def _emit(self, event: Json) -> None:
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._events.write(line)
            self._events.flush()

    def _fatal(self, kind: str, error: BaseException) -> None:
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exception(error)
        while error.__cause__ is not None:
            error = error.__cause__
        message = root_cause(f"{type(error).__name__}: {error}", self._log_start)
        self._emit({"event": "fatal", "kind": kind, "message": message})

    def _end_group(self) -> None:
        """What vLLM started below us ends with us, however it is stuck."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        if os.getpgid(0) == os.getpid():
            keeper.remove(keeper.shared_memory_of([os.getpid()]))
            os.killpg(0, signal.SIGKILL)
        os._exit(0)


if __name__ == "__main__":
    main()
