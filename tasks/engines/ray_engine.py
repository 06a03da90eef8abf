"""The pool's handle on an engine of a Ray cluster: has it started in its place, hears it, and ends it.

A thread of its own does all that waits. An engine that is lost together with its node is told apart from one that
died: no record is to blame, and it is placed again elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from tasks.engines.base import EngineSpec
from tasks.engines.ray_actor import Checks
from tasks.engines.ray_cluster import NotShared
from tasks.engines.ray_place import RayPlace, quietly
from tasks.errors import RunError
from tasks.records import Json

UNAVAILABLE_SECONDS = 60.0
"""Seconds that the way to an actor may be broken before it counts as lost."""
END_SECONDS = 10.0


@dataclass(frozen=True)
class Order:
    """What is to be started: the worker's command and spec, and what its node must have."""

    spec: EngineSpec
    command: tuple[str, ...]
    checks: Checks


class RayEngine:
    """An engine that is placed, starting or running. Events: those of the worker, `placing` and `placed`."""

    def __init__(
        self, place: RayPlace, order: Order, tell: Callable[[Json], None], not_shared: Callable[[str], None]
    ) -> None:
        self.log_path = f"engine-{order.spec.number}.log on its node"
        self._place = place
        self._order = order
        self._tell = tell
        self._not_shared = not_shared
        self._ending = threading.Event()
        self._started = False
        self._gone = False
        threading.Thread(target=self._live, name=f"engine-{order.spec.number}", daemon=True).start()

    def send(self, command: Json) -> None:
        """Never raises, never waits."""
        if self._started and not self._gone:
            quietly(lambda: self._place.call("send", orjson.dumps(command)))

    def end(self, grace: float) -> None:
        """End the worker, and where its node does not answer, the actor."""
        self._ending.set()
        if self._gone or not self._started or self._place.cluster.trouble is not None:
            return
        try:
            ray.get(self._place.call("end", grace), timeout=grace + END_SECONDS)
        except Exception:
            self._place.release()

    def _live(self) -> None:
        exit_event: Json = {"event": "exit"}
        try:
            exit_event |= self._run()
        except NotShared as error:
            self._not_shared(_cause(error))
            exit_event |= {"message": _cause(error), "hopeless": True}
        except RunError as error:
            exit_event |= {"message": _cause(error), "hopeless": True}
        except RayActorError as error:
            # Its node is gone, or Ray ended the actor there. One that never started anything is at fault itself.
            exit_event |= {"message": _cause(error), "lost": self._started}
            self._place.release()
        except Exception as error:
            exit_event |= {"message": f"{type(error).__name__}: {_cause(error)}"}
            self._place.release()
        finally:
            self._gone = True
            self._tell(exit_event)

    def _run(self) -> Json:
        place, order = self._place, self._order
        self._tell({"event": "placing"})
        if not place.take(lambda: self._ending.is_set() or place.cluster.trouble is not None):
            return {"message": "ended before there was a place for it"}
        path = ray.get(place.call("prepare", order.spec.config, order.checks)) or order.spec.model_path
        self._tell({"event": "placed"})
        spec = order.spec.model_copy(update={"model_path": path, "placement_group": place.gpu_group})
        self.log_path = ray.get(place.call("start", spec, order.command, place.cores))
        self._started = True
        if self._ending.is_set():
            self.end(0.0)
        return self._relay()

    def _relay(self) -> Json:
        seen, broken_since = 0, None
        while True:
            try:
                events = orjson.loads(ray.get(self._place.call("events", seen)))
            except ActorUnavailableError:
                broken_since = broken_since or time.monotonic()
                if time.monotonic() - broken_since > UNAVAILABLE_SECONDS:
                    raise
                time.sleep(1.0)
                continue
            broken_since = None
            seen += len(events)
            ended = events.pop() if events and events[-1]["event"] == "exit" else None
            if events:
                self._tell({"event": "events", "events": events})
            if ended is not None:
                return dict(ended)


def _cause(error: BaseException) -> str:
    """The error as it was raised on its node, on one line."""
    cause = getattr(error, "cause", None) or error
    return " ".join(str(cause).split())[:500]
