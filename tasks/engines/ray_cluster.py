"""A connection to a running Ray cluster: how many engines it has room for, and whether its head still answers.

Ray ends a process that has lost the cluster's head for a minute, without a word. So one thread asks for the nodes all
the time, and whoever else wants to know looks at what it saw last, and when.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt

from tasks.config import EngineConfig
from tasks.errors import RunError

LOOK_SECONDS = 2.0
LISTEN_SECONDS = 10.0
CONNECT_SECONDS = 150.0  # a failed try of a client takes Ray 30 to 40
HEAD_SECONDS = 30.0
"""Seconds without an answer after which the head counts as dead."""

Resources = dict[str, float]


class NotShared(RunError):
    """A folder of the run is not the same on all nodes."""


@dataclass(frozen=True)
class Node:
    """A node that is alive, with all that it has, in use or not."""

    id: str
    ip: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Need:
    """What an engine takes: the bundles of its placement group.

    One bundle lies on one node. A replica that no node has GPUs enough for is `across` nodes: a bundle for each GPU.
    """

    bundles: tuple[Resources, ...]
    across: bool = False

    def fits(self, node: Node) -> int:
        """Engines that the node has room for, were it empty (those that are not across nodes)."""
        return min((math.floor(node.resources.get(name, 0.0) / much) for name, much in self.bundles[0].items()))


def need_of(engine: EngineConfig, nodes: Sequence[Node]) -> Need:
    """What an engine takes on this cluster. Raises RunError where that cannot be told.

    A cluster that shrinks to a head without GPUs and CPUs is taken for one of GPUs, where `replicas` are asked for.
    """
    more = dict(engine.ray_resources)
    most = max((node.resources.get("GPU", 0.0) for node in nodes), default=0.0)
    cores = [node.resources["CPU"] for node in nodes if node.resources.get("CPU")]
    has_gpus = most or (engine.replicas and not cores)
    gpus = more.pop("GPU", float(engine.gpus_per_replica) if has_gpus else 0.0)
    if not gpus and not more:
        if not cores:
            raise RunError(
                "engine.replicas: the Ray cluster has neither GPUs nor CPUs now; for one that grows by itself, say how "
                "many engines it shall have (of a GPU each, or what engine.ray_resources says)"
            )
        more = {"CPU": min(cores)}
    if most and gpus > most:
        each: Resources = {"GPU": 1.0}
        return Need(({**each, **more}, *(dict(each) for _ in range(round(gpus) - 1))), across=True)
    return Need(({"GPU": gpus, **more} if gpus else more,))


def room(need: Need, nodes: Sequence[Node]) -> int:
    """Engines that the whole cluster has room for, were it empty."""
    if not need.across:
        return sum(need.fits(node) for node in nodes)
    return int(sum(node.resources.get("GPU", 0.0) for node in nodes)) // len(need.bundles)


class RayCluster:
    """The cluster at an address. `patience`: seconds without an answer after which its head counts as dead."""

    def __init__(self, address: str | None, patience: float = HEAD_SECONDS) -> None:
        """Raises RunError where Ray is not installed or no cluster answers."""
        self._patience = patience
        self.address, self._ours = _connect(address)
        self.nodes: list[Node] = alive_nodes()
        self._unanswered: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="ray-nodes", daemon=True).start()

    @property
    def trouble(self) -> str | None:
        """Why the cluster is lost, in words."""
        since = self._unanswered
        if since is None or (silent := time.monotonic() - since) < self._patience:
            return None
        return (
            f"the head node of the Ray cluster at {self.address} has not answered for {silent:.0f} s; what is finished "
            "is kept: start the cluster and run the same command again"
        )

    def close(self) -> None:
        """Leave the cluster; never waits long for one that is dead."""
        self._closed.set()
        if not self._ours:
            return
        import ray

        leaving = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
        leaving.start()
        leaving.join(10.0)

    def _look(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            # Counted from the first question without an answer: time in which we stood still ourselves is none.
            self._unanswered = self._unanswered or time.monotonic()
            try:
                self.nodes = alive_nodes()
            except Exception:  # noqa: S112  (no answer: `trouble` tells when that has lasted too long)
                continue
            self._unanswered = None


def require_ray() -> None:
    """Raises RunError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise RunError("engine.pool: 'ray' needs Ray, which is an extra: pip install '.[ray]'")


def alive_nodes() -> list[Node]:
    """The cluster's nodes."""
    import ray

    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]
    ]


def known_group(id_: str, gpus: int) -> Any:
    """The placement group of this id, a GPU a bundle, as a process names it that has not made it."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(bytes.fromhex(id_)), bundle_cache=[{"GPU": 1.0} for _ in range(gpus)])


def _connect(address: str | None) -> tuple[str, bool]:
    """Connect, unless this process is connected already; returns the address, and whether the connection is ours."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    place = address or os.environ.get("RAY_ADDRESS") or "auto"
    if ray.is_initialized():
        return place, False
    _require_listener(place)
    logging.getLogger("ray").setLevel(logging.ERROR)  # what it warns of is told by our own messages
    options: dict[str, Any] = {} if place.startswith("ray://") else {"configure_logging": False}
    failed: list[Exception] = []

    # Of Ray's proxy for clients: now and then the server that it forks for one dies at birth (its gRPC's threads).
    @retry(retry=retry_if_exception_type(ConnectionAbortedError), stop=stop_after_attempt(3), reraise=True)
    def init() -> None:
        try:
            ray.init(address=place, log_to_driver=False, **options)
        except Exception:
            ray.shutdown()  # what is left of it would be in the next one's way
            raise

    def connect() -> None:
        try:
            init()
        except Exception as error:
            failed.append(error)

    # Ray tries a dead cluster for minutes; a thread can be left to that.
    connecting = threading.Thread(target=connect, name="ray-connect", daemon=True)
    connecting.start()
    connecting.join(CONNECT_SECONDS)
    if failed:
        raise _no_cluster(place, failed[0]) from failed[0]
    if connecting.is_alive():
        raise _no_cluster(place, f"no answer in {CONNECT_SECONDS:g} s")
    return place, True


def _require_listener(place: str) -> None:
    """Raises RunError where nothing listens at HOST:PORT."""
    host, _, port = place.removeprefix("ray://").partition("/")[0].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LISTEN_SECONDS).close()
    except OSError as error:
        raise _no_cluster(place, error) from error


def _no_cluster(place: str, reason: object) -> RunError:
    token = "RAY_AUTH_MODE" not in os.environ and Path("~/.ray/auth_token").expanduser().exists()
    hint = " (where clusters ask for the token in ~/.ray/auth_token, set RAY_AUTH_MODE=token)" if token else ""
    return RunError(f"engine.ray_address: no Ray cluster to be had at '{place}': {' '.join(str(reason).split())}{hint}")
