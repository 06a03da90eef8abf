"""The pool: hands shards to engines, restarts the dead and the hung, and gives up what cannot be helped.

One thread owns all state; everything else talks to it through its inbox. How an engine is started and ended is the
launcher's business (a local process, a Ray actor), so every kind of pool behaves the same. watchdog.py says which
engine hangs, recovery.py what is done about one that died, hunt.py finds the record that kills engines.

A dead engine's shards stay its own, for it goes on where it was; an engine that has nothing else to do takes them over.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from tasks.config import EngineConfig
from tasks.engines import watchdog
from tasks.engines.hunt import Hunts
from tasks.engines.launcher import EngineHandle, Launcher
from tasks.engines.orders import Orders
from tasks.engines.recovery import MAX_RESTARTS, judge
from tasks.engines.slot import Slot
from tasks.engines.view import EngineView, PoolView
from tasks.errors import RunError
from tasks.records import Json, Shard, ShardManifest

__all__ = [
    "EngineHandle",
    "EnginePool",
    "EngineView",
    "InputChangedInEngineError",
    "Launcher",
    "PoolView",
    "RunStoppedError",
    "ShardFailedError",
]

log = logging.getLogger("datagen.pool")

TICK_SECONDS = 0.1
"""Between two looks at all engines; with a thousand of them and events all the time, a look at each event is dear."""
EVENTS_A_TICK = 5000
NEWEST_STEPS = 50
OWN_ERRORS = 20


class ShardFailedError(Exception):
    """A shard could not be made this time; its finished samples are kept, and a retry does the rest."""


class RunStoppedError(ShardFailedError):
    """The run is being stopped; the same run started again does the rest."""


class InputChangedInEngineError(RunError):
    """The input is not what was split; see the message."""


class EnginePool:
    """All engines of a run. Engines start with the first shard that is asked for, and not at all without one."""

    def __init__(self, launcher: Launcher, config: EngineConfig) -> None:
        self._launcher = launcher
        self._config = config
        self._inbox: queue.Queue[Callable[[], None]] = queue.Queue()
        self._slots: list[Slot] = []
        self._orders = Orders()
        self._hunts = Hunts()
        self._steps: list[str] = []
        self._trouble: str | None = None
        self._looked_at = 0.0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def generate(self, shard: Shard) -> ShardManifest:
        """Have a shard made; waits for it. Safe from any thread.

        Raises ShardFailedError when a retry may help, RunError when a person must.
        """
        future: Future[ShardManifest] = Future()
        with self._lock:
            if self._closing.is_set():
                raise RunStoppedError("the run is stopping")
            self._inbox.put(lambda: self._take(shard, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine-pool", daemon=True)
                self._thread.start()
        return future.result()

    def view(self) -> PoolView:
        """The figures now."""
        engines = [EngineView(**vars(slot.view)) for slot in list(self._slots)]
        orders = self._orders
        shards = {
            index: orders.view(index, slot.view.number) for slot in list(self._slots) for index in list(slot.shards)
        }
        return PoolView(engines, orders.samples, orders.errors, orders.resumed, list(self._steps), shards)

    def facts(self) -> Json:
        """What the engines said of themselves when they started, for the manifest."""
        return next((slot.facts for slot in list(self._slots) if slot.facts), {})

    def close(self) -> None:
        """End all engines; shards under way fail, what is made of them is kept."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        if thread is not None:
            thread.join()
        self._launcher.close()

    def _run(self) -> None:
        """Engines are launched from this thread, which outlives them: their parent-death signal hangs on it."""
        self._looked_at = time.monotonic() - TICK_SECONDS
        errors = 0
        while not self._closing.is_set():
            self._work(TICK_SECONDS)
            if time.monotonic() - self._looked_at < TICK_SECONDS:
                continue
            try:
                self._look()
                errors = 0
            except Exception as error:
                log.exception("the pool met an error of its own")
                errors += 1
                if errors == OWN_ERRORS:  # nobody shall wait for a pool that cannot work
                    self._trouble = f"the pool cannot go on: {type(error).__name__}: {error}"
                    self._fail_all()
        self._work(0.0)  # shards that were asked for before the end
        self._end_all()

    def _work(self, seconds: float) -> None:
        """Do what is in the inbox; wait so long for something to be in it."""
        try:
            self._do(self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait())
            for _ in range(EVENTS_A_TICK):
                self._do(self._inbox.get_nowait())
        except queue.Empty:
            pass

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            log.exception("the pool met an error of its own")

    def _take(self, shard: Shard, future: Future[ShardManifest]) -> None:
        self._orders.add(shard, future)
        if self._trouble or (self._slots and all(slot.given_up for slot in self._slots)):
            self._fail_all()
        self._hand_out()

    def _hand_out(self) -> None:
        """Give shards to engines that want one: what they held before they died, then new ones, then what waits for a
        dead engine. None takes more than its share of what is left."""
        alive, waiting = [slot for slot in self._slots if not slot.given_up], self._orders.waiting
        for slot in alive:
            if not slot.wants or not slot.up:
                continue
            share = -(-len(self._orders) // len(alive))
            if slot.backlog:
                self._give(slot, slot.backlog.popleft())
            elif waiting and len(slot.shards) < share:
                self._give(slot, waiting.popleft())
            elif not slot.shards and not waiting:
                owner = next((other for other in alive if other.backlog and not other.up), None)
                if owner is not None:
                    self._give(slot, owner.backlog.popleft())

    def _give(self, slot: Slot, shard: Shard) -> None:
        assert slot.handle is not None
        if self._hunts.waits_in(shard) or self._hunts.poison_in(shard):
            slot.hunt.join(self._hunts.resume(shard))
            slot.handle.send({"hunt": self._hunts.command(slot.hunt)})
        slot.give(shard)
        slot.handle.send({"shard": shard.model_dump(mode="json")})

    def _launch(self, slot: Slot) -> None:
        launch = slot.begin_launch()

        def tell(event: Json) -> None:
            self._inbox.put(lambda: self._hear(slot, launch, event))

        try:
            slot.handle = self._launcher.launch(slot.view.number, slot.overrides, tell)
        except Exception as error:
            slot.last_words = f"it cannot be started: {type(error).__name__}: {error}"
            self._died(slot)

    def _hear(self, slot: Slot, launch: int, event: Json) -> None:
        if launch != slot.launch or slot.handle is None:
            return  # an engine that has been replaced
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(slot, event)

    def _on_events(self, slot: Slot, event: Json) -> None:
        launch = slot.launch
        for each in event["events"]:
            self._hear(slot, launch, each)

    def _on_ready(self, slot: Slot, event: Json) -> None:
        slot.ready(event["facts"])
        self._hand_out()

    def _on_placing(self, slot: Slot, _event: Json) -> None:
        slot.view.state = "placing"
        self._hand_out()  # what it held when it died need not wait for it

    def _on_placed(self, slot: Slot, _event: Json) -> None:
        slot.view.state = "starting"
        slot.started = slot.alive_at = time.monotonic()

    def _on_want(self, slot: Slot, _event: Json) -> None:
        slot.wants = True
        self._hand_out()

    def _on_begin(self, slot: Slot, event: Json) -> None:
        slot.begin(event["record"])

    def _on_end(self, slot: Slot, event: Json) -> None:
        slot.end(event["record"])

    def _on_rows(self, _slot: Slot, event: Json) -> None:
        self._orders.note_rows(event)

    def _on_stats(self, slot: Slot, event: Json) -> None:
        slot.note(event)

    def _on_shard_done(self, slot: Slot, event: Json) -> None:
        manifest = ShardManifest.model_validate(event["manifest"])
        slot.take_back(event["shard"])
        slot.fruitless = slot.restarts = 0
        self._orders.done(manifest, event["shard"])
        self._hand_out()

    def _on_shard_failed(self, slot: Slot, event: Json) -> None:
        slot.take_back(event["shard"])
        changed = event["kind"] == "InputChanged"
        error = (InputChangedInEngineError if changed else ShardFailedError)(event["message"])
        self._orders.fail(event["shard"], error)
        self._hand_out()

    def _on_trouble(self, slot: Slot, event: Json) -> None:
        """Told once, however often it is tried again; an engine that waits for its store does not hang."""
        slot.alive_at = time.monotonic()
        step = f"engine {slot.view.number}: {event['message']}"
        if step not in self._steps[-NEWEST_STEPS:]:
            self._note(step)

    def _on_fatal(self, slot: Slot, event: Json) -> None:
        slot.last_words = slot.ending or event["message"]

    def _on_exit(self, slot: Slot, event: Json) -> None:
        slot.last_words = slot.last_words or event["message"]
        if event.get("lost"):
            self._lost(slot)
        else:
            self._died(slot, hopeless=event.get("hopeless", False))

    def _look(self) -> None:
        """What nobody tells: time that has passed, places that have come up."""
        now = time.monotonic()
        paused, self._looked_at = now - self._looked_at, now
        self._grow()
        if self._trouble:
            return
        for slot in self._slots:
            if paused > watchdog.PAUSE_SECONDS:
                slot.stood_still(paused)
            if slot.restart_at is not None and now >= slot.restart_at:
                self._launch(slot)
            elif slot.handle is not None:
                self._watch(slot, slot.handle, now)

    def _grow(self) -> None:
        """Start engines where places have come up, while there is a shard for them; or learn that there are none."""
        if self._orders.waiting:
            for number in range(len(self._slots), self._launcher.slots):
                self._slots.append(Slot(EngineView(number)))
                self._launch(self._slots[number])
        if not self._trouble and (words := self._launcher.trouble):
            self._trouble = words
            self._note(words)
            self._fail_all()

    def _watch(self, slot: Slot, handle: EngineHandle, now: float) -> None:
        if watchdog.cannot_be_ended(slot, now):
            slot.last_words = f"{slot.ending}, and does not end when it is killed"
            self._died(slot, stuck=True)
        elif not slot.ending and (words := watchdog.complaint(slot, self._config, now)):
            slot.ending = slot.last_words = words
            slot.ending_since = now
            # Its exit event comes back through the inbox, like that of an engine that died by itself.
            threading.Thread(target=handle.end, args=(1.0,), daemon=True).start()

    def _died(self, slot: Slot, stuck: bool = False, hopeless: bool = False) -> None:
        """`stuck`: its process is still there, and its GPUs with it; `hopeless`: another one would end alike."""
        was_starting = slot.view.state == "starting"
        handle, in_flight = slot.died()
        if handle is not None and not stuck:
            handle.end(0.0)
        verdict = judge(slot, in_flight, was_starting, self._hunts, self._config)
        give_up = verdict.give_up or stuck or hopeless
        step = verdict.step + ("; it is given up" if give_up else "")
        self._note(step + (f" (log: {handle.log_path})" if handle is not None else ""))
        self._go_on(slot, verdict.delay, give_up)

    def _lost(self, slot: Slot) -> None:
        """The engine's machine is gone: no record is to blame, and suspects of an earlier crash stay suspects."""
        slot.died()
        self._hunts.died(slot.hunt, set(), slot.shards.values(), "engine_crash")
        self._note(f"engine {slot.view.number} is lost, its shards go on elsewhere: {slot.last_words}")
        self._go_on(slot, min(30.0, 0.5 * slot.restarts), slot.restarts >= MAX_RESTARTS)

    def _go_on(self, slot: Slot, delay: float, give_up: bool) -> None:
        slot.backlog.extendleft(reversed(slot.shards.values()))
        slot.shards.clear()
        if give_up:
            self._give_up(slot)
            return
        slot.restarts += 1
        slot.view.restarts += 1
        slot.restart_at = time.monotonic() + delay
        self._hand_out()

    def _note(self, step: str) -> None:
        log.warning(step)
        self._steps.append(step)

    def _give_up(self, slot: Slot) -> None:
        slot.view.state = "given up"
        log.error("engine %d is given up", slot.view.number)
        self._orders.give_back(slot.backlog)
        slot.backlog.clear()
        if all(other.given_up for other in self._slots):
            self._fail_all()
        else:
            self._hand_out()

    def _fail_all(self) -> None:
        words = self._trouble or f"no engine is left: {(self._steps or ['none could be started'])[-1]}"
        self._orders.fail_all(RunError(words))

    def _end_all(self) -> None:
        handles = [slot.handle for slot in self._slots if slot.handle is not None]
        for handle in handles:
            handle.send({"stop": True})
        enders = [threading.Thread(target=handle.end, args=(8.0,), daemon=True) for handle in handles]
        for thread in enders:
            thread.start()
        for thread in enders:
            thread.join(watchdog.END_SECONDS)
        for slot in self._slots:
            slot.view.state = "ended"
        self._orders.fail_all(RunStoppedError("the run was stopped"))
