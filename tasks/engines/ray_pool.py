"""The Ray launcher: an engine is an actor on a Ray cluster, in a placement group of its GPUs.

The pool's engines grow with the cluster: `slots` is what it has room for at most so far. An engine whose place is gone
waits for another; the shards it held go to engines that work.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.engines.base import EngineSpec
from tasks.engines.launcher import EngineHandle
from tasks.engines.ray_cluster import HEAD_SECONDS, Need, RayCluster, need_of, room
from tasks.engines.worker_process import WORKER
from tasks.errors import RunError
from tasks.records import Json, ModelManifest
from tasks.run_log import log
from tasks.storage import is_remote, open_storage, write

if TYPE_CHECKING:
    from tasks.engines.ray_place import RayPlace


class RayLauncher:
    """Starts engines on a cluster; `files` are the dataset's. Without a `model` nothing is fetched on the nodes.

    Connects when the first engine is wanted: a run that has nothing to do needs no cluster.
    """

    def __init__(
        self,
        spec: EngineSpec,
        model: ModelManifest | None,
        files: Sequence[str],
        worker: tuple[str, ...] = WORKER,
        patience: float = HEAD_SECONDS,
    ) -> None:
        self._spec = _with_absolute_output(spec)
        self._model = model
        self._files = tuple(files)
        self._worker = worker
        self._patience = patience
        self._cluster: RayCluster | None = None
        self._places: dict[int, RayPlace] = {}
        self._need = Need(())
        self._most = 0
        self._probe = ""
        self._trouble: str | None = None
        self._running = False

    @property
    def slots(self) -> int:
        """The engines asked for, or what the cluster has had room for."""
        if self._cluster is None and self._trouble is None:
            try:
                self._connect()
            except RunError as error:
                self._trouble = str(error)
        if self._cluster is None or self._trouble:
            return 0
        self._most = max(self._most, room(self._need, self._cluster.nodes))
        return self._replicas or self._most

    @property
    def trouble(self) -> str | None:
        """Why no engine can be had any more."""
        return self._trouble or (self._cluster.trouble if self._cluster else None)

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> EngineHandle:
        from tasks.engines.ray_actor import Checks
        from tasks.engines.ray_engine import Order, RayEngine
        from tasks.engines.ray_place import RayPlace

        assert self._cluster is not None
        spec = self._spec.model_copy(update={"number": slot, "overrides": overrides})
        dummy = spec.config.engine.extra.get("load_format") == "dummy"
        checks = Checks(self._probe, self._files, self._model, dummy)

        def hear(event: Json) -> None:
            self._running = self._running or any(e["event"] == "ready" for e in event.get("events", ()))
            tell(event)

        place = self._places.setdefault(slot, RayPlace(self._cluster, self._need))
        return RayEngine(place, Order(spec, self._worker, checks), hear, self._not_shared)

    def close(self) -> None:
        if self._probe:
            open_storage(self._spec.config.output.path).remove(self._probe)
        for place in self._places.values():
            place.release()
        if self._cluster is not None:
            self._cluster.close()

    @property
    def _replicas(self) -> int | None:
        return self._spec.config.engine.replicas

    def _connect(self) -> None:
        """Raises RunError where no cluster answers, or none of its nodes has room for an engine."""
        engine = self._spec.config.engine
        cluster = self._cluster = RayCluster(engine.ray_address, self._patience)
        self._need = need_of(engine, cluster.nodes)
        self._most = room(self._need, cluster.nodes)
        takes = " + ".join(str(bundle) for bundle in self._need.bundles)
        log.info(
            "Ray cluster at %s: %d nodes, room for %d engines of %s",
            cluster.address, len(cluster.nodes), self._most, takes,
        )  # fmt: skip
        if not self._replicas and not self._most:
            raise RunError(
                f"engine.replicas: no node of the Ray cluster at {cluster.address} has {takes}; for a cluster that "
                "grows by itself, say how many engines it shall have"
            )
        if self._replicas and self._replicas > self._most:
            log.warning("engine.replicas: %d are asked for; the others start when nodes join", self._replicas)
        self._place_probe()

    def _not_shared(self, words: str) -> None:
        """A node that joins late and lacks the folder is left out; before any engine works, the run is set up wrong."""
        if not self._running:
            self._trouble = words

    def _place_probe(self) -> None:
        output = self._spec.config.output.path
        if not is_remote(output):
            self._probe = f".nodes-{uuid.uuid4().hex[:8]}"
            write(open_storage(output), self._probe, b"")


def _with_absolute_output(spec: EngineSpec) -> EngineSpec:
    """A relative folder is another one in an actor's working directory."""
    path = spec.config.output.path
    if is_remote(path):
        return spec
    output = spec.config.output.model_copy(update={"path": str(Path(open_storage(path).root))})
    return spec.model_copy(update={"config": spec.config.model_copy(update={"output": output})})
