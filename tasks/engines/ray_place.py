"""A place for an engine on a Ray cluster: a placement group, and the actor in it. It outlives the engine's restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tasks.engines.ray_actor import GROUPS, EngineActor
from tasks.engines.ray_cluster import Need, RayCluster

_WAIT_SECONDS = 1.0
_REMOTE: Any = ray.remote(concurrency_groups=GROUPS)(EngineActor)


class RayPlace:
    """Found by `take`, kept until `release`; after that `take` finds another."""

    def __init__(self, cluster: RayCluster, need: Need) -> None:
        self.cluster = cluster
        self.need = need
        self.actor: Any = None
        self._group: PlacementGroup | None = None

    def take(self, given_up: Callable[[], bool]) -> bool:
        """Have a place and an actor there, waiting as long as it takes; False when it was given up meanwhile."""
        if self.actor is not None:
            return True
        group = self._group = self._group or placement_group([dict(bundle) for bundle in self.need.bundles])
        while not group.wait(_WAIT_SECONDS):
            if given_up():
                self.release()
                return False
        self.actor = self._start_actor(group)
        return True

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor; returns Ray's reference to the result at once."""
        return getattr(self.actor, method).remote(*arguments)

    def release(self) -> None:
        """Give the place back, and end what is there. Nothing answers on a dead cluster, and nothing is left there."""
        actor, group = self.actor, self._group
        self.actor = self._group = None
        if self.cluster.trouble is not None:
            return
        if actor is not None:
            quietly(lambda: ray.kill(actor))
        if group is not None:
            quietly(lambda: remove_placement_group(group))

    @property
    def gpu_group(self) -> str:
        """The placement group of a replica across nodes, for vLLM to place its workers in."""
        return self._group.id.hex() if self._group is not None and self.need.across else ""

    @property
    def cores(self) -> int:
        """The cores of an engine on the CPU: those it asked for, else its share of the node. 0 on GPUs."""
        if "GPU" in self.need.bundles[0]:
            return 0
        if cores := self.need.bundles[0].get("CPU"):
            return max(1, int(cores))
        where = placement_group_table(self._group)["bundles_to_node_id"][0]
        node = next((node for node in self.cluster.nodes if node.id == where), None)
        return max(1, int(node.resources.get("CPU", 1.0)) // max(1, self.need.fits(node))) if node else 1

    def _start_actor(self, group: PlacementGroup) -> Any:
        bundle = self.need.bundles[0]
        return _REMOTE.options(
            num_cpus=bundle.get("CPU", 0.0),
            num_gpus=0.0 if self.need.across else bundle.get("GPU", 0.0),
            resources={name: much for name, much in bundle.items() if name not in ("CPU", "GPU")},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        ).remote()


def quietly(call: Callable[[], Any]) -> None:
    """Call; what Ray says of an actor or a cluster that is gone does not matter."""
    try:
        call()
    except (RayError, ConnectionError, RuntimeError, ValueError):
        return
