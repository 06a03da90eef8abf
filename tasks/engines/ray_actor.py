"""On the engine's node: a Ray actor that has the model there, and relays between the pool and a worker process.

The worker is the same process as in the local pool, so feeding, chunks, statistics and its end are the same code. It
dies with the actor, and the actor with the run that owns it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import orjson
import ray

from tasks.config import GenerateConfig
from tasks.downloads.fetch import fetch_model
from tasks.engines import lifeline
from tasks.engines.base import EngineSpec
from tasks.engines.devices import cores_environment
from tasks.engines.ray_cluster import NotShared
from tasks.engines.worker_process import WorkerProcess, base_environment
from tasks.errors import RunError
from tasks.records import Json, ModelManifest
from tasks.run_log import log_folder
from tasks.storage import is_remote, open_storage

POLL_SECONDS = 1.0
GATHER_SECONDS = 1.0
"""Events wait so long for others to travel with, but those that somebody waits for: a call for each would be the first
thing to break with a thousand engines."""
MAY_WAIT = {"begin", "end", "rows", "stats"}
_MOST_FILES = 100


@dataclass(frozen=True)
class Checks:
    """What a node must have. `probe` is a file of the run's output folder; without a model none is fetched."""

    probe: str
    files: tuple[str, ...]
    model: ModelManifest | None
    dummy_weights: bool


GROUPS = {"events": 1, "send": 1, "end": 1}
"""Ray's concurrency groups, one for each of these methods: a thread for hearing, one for commands in their order, and
one for the end, whatever waits."""


class EngineActor:
    """One engine. `prepare`, then `start`, then `events` again and again; `send` and `end` at any time."""

    def __init__(self) -> None:
        self._events: list[Json] = []
        self._first = 0
        self._changed = threading.Condition()
        self._worker: WorkerProcess | None = None
        self._keeper = lifeline.Keeper()

    def prepare(self, config: GenerateConfig, checks: Checks) -> str:
        """See that the node has what the engine needs; returns the model's path here. Raises RunError."""
        _check_files(config, checks)
        if checks.model is None:
            return ""
        # A branch may have moved since the run began.
        pinned = config.model.model_copy(update={"revision": checks.model.revision or config.model.revision})
        model = fetch_model(pinned, checks.dummy_weights)
        if model.identity != checks.model.identity:
            raise RunError(
                f"model.source: {config.model.source} is another model on node {_here()} ({model.identity}) than where "
                f"the run was started ({checks.model.identity})"
            )
        return model.path

    def start(self, spec: EngineSpec, command: tuple[str, ...], cores: int) -> str:
        """Start a worker, the first or another one; returns where its log is."""
        log_path = log_folder(spec.config.output.path) / f"engine-{spec.number}.log"
        with self._changed:
            self._events, self._first = [], 0
        self._worker = WorkerProcess(spec, command, _environment(spec, cores), log_path, self._keeper)
        self._worker.start(self._hear)
        return f"{log_path} on node {_here()}"

    def events(self, seen: int) -> bytes:
        """The events from number `seen` on, as JSON, waiting a little for the first; those before are forgotten."""
        with self._changed:
            del self._events[: seen - self._first]
            self._first = max(self._first, seen)
            if self._changed.wait_for(lambda: bool(self._events), POLL_SECONDS):
                self._changed.wait_for(self._urgent, GATHER_SECONDS)
            return orjson.dumps(self._events)

    def send(self, line: bytes) -> None:
        """A command for the worker."""
        if self._worker is not None:
            self._worker.send(orjson.loads(line))

    def end(self, grace: float) -> None:
        """End the worker and all below it."""
        if self._worker is not None:
            self._worker.end(grace)

    def _urgent(self) -> bool:
        return any(event["event"] not in MAY_WAIT for event in self._events)

    def _hear(self, event: Json) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify()


for _name in GROUPS:
    ray.method(concurrency_group=_name)(getattr(EngineActor, _name))


def _check_files(config: GenerateConfig, checks: Checks) -> None:
    output = config.output.path
    if not is_remote(output) and open_storage(output).size(checks.probe) is None:
        raise NotShared(
            f"output.path: {output} on node {_here()} is not the folder that the run was started in: with more than "
            "one machine it must be on S3 or on a file system that all share"
        )
    for path in checks.files[:_MOST_FILES]:
        if not is_remote(path) and not Path(path).exists():
            raise NotShared(
                f"dataset.path: {path} is not there on node {_here()}: with more than one machine the dataset must be "
                "on S3 or on a file system that all share"
            )


def _environment(spec: EngineSpec, cores: int) -> dict[str, str]:
    """The worker's environment: the node's own, without what Ray sets for its actors."""
    environment = base_environment(spec.config)
    # Ray means numpy in many small tasks by it; our worker has `cores` of the node for itself (0: it is on GPUs).
    environment.pop("OMP_NUM_THREADS", None)
    if cores:
        each = max(1, cores // spec.config.engine.gpus_per_replica)  # vLLM starts a process for each part of a replica
        environment = cores_environment(each) | environment
    if spec.placement_group:
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # the GPUs are those of the actors that vLLM places
    # Ray's own search path leads to the product where it is not installed.
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    return environment


def _here() -> str:
    return str(ray.util.get_node_ip_address())
