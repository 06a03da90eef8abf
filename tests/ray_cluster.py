"""Ray clusters of several nodes on this machine; an engine takes one of a node's `engine`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.ports import free_port

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # a token that lies in the home folder is another cluster's

_SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


class TestCluster:
    """A cluster of nodes with room for so many engines each; the first is its head."""

    __test__ = False

    def __init__(self, engines: list[int]) -> None:
        from ray.cluster_utils import Cluster

        port = free_port()
        head = {**_SMALL, "resources": {"engine": engines[0]}, "ray_client_server_port": port}
        self._cluster: Any = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self._cluster.address
        self.client_address = f"ray://127.0.0.1:{port}"
        self.nodes = [self._cluster.head_node, *(self._add(count) for count in engines[1:])]
        self._cluster.wait_for_nodes()

    def add_node(self, engines: int) -> Any:
        """A node more; returns when it has joined."""
        node = self._add(engines)
        self._cluster.wait_for_nodes()
        return node

    def kill_node(self, node: Any) -> None:
        """kill -9 of the node and what runs on it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()

    def _add(self, engines: int) -> Any:
        return _patiently(lambda: self._cluster.add_node(wait=False, resources={"engine": engines}, **_SMALL))


def _patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node 30 s to start, which is short on a machine that does much else."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()
