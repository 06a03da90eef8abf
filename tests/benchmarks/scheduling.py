"""What scheduling costs: 10,000 shards on 64 engines that only pretend to generate.

The pool is the real one, and so are its threads, its inbox and every event of an engine (two for each record, its rows,
its figures once a second); only the engines' work is a clock. The ideal is what the same shards would take if each
engine that is free had the next one in no time. Real shards take minutes: here they take a second, so that scheduling
weighs some hundred times more than it does in a run.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tasks.config import EngineConfig
from tasks.engines.pool import EnginePool
from tasks.engines.ray_actor import MAY_WAIT
from tasks.records import Json, Shard, ShardManifest
from tests.benchmarks.harness import Figures, Result
from tests.shards import dataset_of

WAITING_THREADS = 256
"""As in the flow: tasks that wait on the pool at a time."""
ASK_AT = 0.8
"""Share of a shard after which an engine asks for the next: when its last records are in flight."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--engines", type=int, nargs="+", default=[64])
    parser.add_argument("--seconds", type=float, default=1.0, help="mean length of a shard")
    parser.add_argument("--records", type=int, default=32, help="records a shard")
    parser.add_argument("--gather", type=float, default=0.0, help="seconds of an engine's events that travel together")


def measure(options: argparse.Namespace) -> Result:
    rows = [run(options, engines) for engines in options.engines]
    name = f"wall time added, {options.shards:,} shards of {options.seconds:g} s on {options.engines[0]} engines, %"
    notes = ["the processor time is the pool's and the pretending engines' together"]
    return Result(rows, {name: rows[0]["added %"]}, {name: "< 2"}, notes)


class Clockwork:
    """One thread that does what is due, for all engines."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def at(self, when: float, work: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (when, next(self._order), work))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                work = heapq.heappop(self._due)[2]
            work()


class PretendEngine:
    """Does its shards one after the other, each in the time it was given, and tells what a worker tells."""

    log_path = ""

    def __init__(self, clock: Clockwork, seconds: dict[int, float], records: int, tell: Callable[[Json], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._records = records
        self._tell = tell
        self._shards: deque[int] = deque()
        self._busy_until = 0.0
        self._ended = False
        self._made = 0
        tell({"event": "ready", "max_num_seqs": 256, "facts": {}})
        tell({"event": "want"})
        self._figures()

    def send(self, command: Json) -> None:
        if "shard" in command:
            index = command["shard"]["index"]
            self._clock.at(0.0, lambda: self._begin(index))

    def end(self, grace: float) -> None:
        del grace
        if not self._ended:
            self._ended = True
            self._tell({"event": "exit", "message": "ended"})

    def _begin(self, index: int) -> None:
        start, seconds = max(time.monotonic(), self._busy_until), self._seconds[index]
        self._busy_until = start + seconds
        for record in range(self._records):
            when = start + seconds * record / self._records
            self._clock.at(when, lambda record=record: self._tell({"event": "begin", "record": index * 100 + record}))  # type: ignore[misc]
            self._clock.at(when + seconds / self._records, lambda record=record: self._end_record(index, record))  # type: ignore[misc]
        self._clock.at(start + ASK_AT * seconds, lambda: self._tell({"event": "want"}))
        self._clock.at(self._busy_until, lambda: self._done(index))

    def _end_record(self, index: int, record: int) -> None:
        self._made += 1
        self._tell({"event": "end", "record": index * 100 + record})
        self._tell({"event": "rows", "shard": index, "samples": 1, "errors": 0})

    def _done(self, index: int) -> None:
        self._tell({"event": "shard_done", "shard": index, "manifest": _manifest(index, self._records)})

    def _figures(self) -> None:
        if not self._ended:
            figures = {"tokens": self._made, "running": 1, "waiting": 0, "in_flight": 1, "kv_cache_usage": 0.5}
            self._tell({"event": "stats", **figures})
            self._clock.at(time.monotonic() + 1.0, self._figures)


class Gathered:
    """Events as they come from a Ray actor: some time's together, those that are waited for at once."""

    def __init__(self, clock: Clockwork, seconds: float, tell: Callable[[Json], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._tell = tell
        self._events: list[Json] = []
        self._lock = threading.Lock()

    def tell(self, event: Json) -> None:
        if event["event"] not in MAY_WAIT:
            self._flush([event])
            return
        with self._lock:
            self._events.append(event)
            first = len(self._events) == 1
        if first:
            self._clock.at(time.monotonic() + self._seconds, lambda: self._flush([]))

    def _flush(self, more: list[Json]) -> None:
        with self._lock:
            events, self._events = [*self._events, *more], []
        if events:
            self._tell({"event": "events", "events": events})


class PretendLauncher:
    """Starts pretending engines at once."""

    trouble: str | None = None

    def __init__(self, engines: int, seconds: dict[int, float], records: int, gather: float) -> None:
        self.slots = engines
        self._clock = Clockwork()
        self._seconds = seconds
        self._records = records
        self._gather = gather

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> PretendEngine:
        del slot, overrides
        if self._gather:
            tell = Gathered(self._clock, self._gather, tell).tell
        return PretendEngine(self._clock, self._seconds, self._records, tell)

    def close(self) -> None:
        return None


def run(options: argparse.Namespace, engines: int) -> Figures:
    """Run them all; seconds in all, the ideal, and the processor time of the whole process."""
    shards, records, rng = options.shards, options.records, random.Random(7)
    seconds = {index: options.seconds * rng.uniform(0.5, 1.5) for index in range(shards)}
    pool = EnginePool(PretendLauncher(engines, seconds, records, options.gather), EngineConfig())
    todo: tuple[Shard, ...] = dataset_of(shards * records, records).shards
    cpu, started = _cpu_seconds(), time.monotonic()
    with ThreadPoolExecutor(WAITING_THREADS) as threads:
        made = list(threads.map(pool.generate, todo))
    wall = time.monotonic() - started
    cpu = _cpu_seconds() - cpu
    pool.close()
    assert [manifest.index for manifest in made] == list(range(shards))
    ideal = ideal_seconds(list(seconds.values()), engines)
    events = shards * (3 * records + 2)
    return {
        "engines": engines,
        "wall s": round(wall, 2),
        "ideal s": round(ideal, 2),
        "added %": round(100 * (wall / ideal - 1), 2),
        "events": events,
        "events a second": round(events / wall),
        "µs an event": round(cpu / events * 1e6, 1),
    }


def ideal_seconds(seconds: list[float], engines: int) -> float:
    """Each engine that is free has the next shard in no time."""
    free = [0.0] * engines
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _manifest(index: int, records: int) -> Json:
    file = {"name": "x", "bytes": 0, "sha256": "", "rows": records}
    manifest = ShardManifest.model_validate(
        {
            "key": "k", "index": index, "start": index * records, "records": records, "sha256": f"sha{index}", "n": 1,
            "data": file, "errors": file, "tally": {}, "engine": "engine-0", "started_at": 0.0, "seconds": 1.0,
            "grading": "", "resumed_samples": 0, "timeline": [],
        }
    )  # fmt: skip
    return manifest.model_dump(mode="json")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
