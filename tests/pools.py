"""Runs shards through a pool of fake engines, as the flow does with real ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.config import GenerateConfig
from tasks.engines.base import EngineSpec
from tasks.engines.gpu_locks import NoGpus, gpus_for
from tasks.engines.launcher import Launcher
from tasks.engines.local_pool import LocalLauncher
from tasks.engines.pool import EnginePool, PoolView
from tasks.engines.ray_pool import RayLauncher
from tasks.records import Shard, ShardManifest
from tasks.shard_store import ShardStore
from tasks.split_dataset import split
from tasks.storage import open_storage

RAY_ADDRESS: str | None = None
"""A cluster that the pools of these runs shall use; None: local pools."""
RAY_PATIENCE = 30.0
FAKE = (sys.executable, "-m", "tests.fake_engine")


@dataclass
class FakeRun:
    """A dataset of prompts in a folder, and a pool of fake engines for it."""

    folder: Path
    config: GenerateConfig
    shards: tuple[Shard, ...]
    store: ShardStore
    pool: EnginePool

    @classmethod
    def make(
        cls,
        folder: Path,
        prompts: Sequence[str],
        replicas: int | None = 1,
        on_gpus: bool = False,
        lines: Sequence[bytes] = (),
        **sections: Any,
    ) -> FakeRun:
        """`replicas` None: what the cluster, or the GPUs, have room for; `lines` are the dataset's lines as they are,
        in place of `prompts`."""
        folder.mkdir(exist_ok=True, parents=True)
        path = folder / "prompts.jsonl"
        path.write_bytes(b"\n".join(lines or [orjson.dumps({"prompt": p}) for p in prompts]) + b"\n")
        sections.setdefault("output", {"chunk_seconds": 0.2})
        sections["output"]["path"] = str(folder / "out")
        sections["engine"] = {"replicas": replicas, **_pool(), **sections.get("engine", {})}
        sections["dataset"] = {"path": str(path), "shard_size": 50} | sections.get("dataset", {})
        config = GenerateConfig(model={"source": "fake"}, **sections)  # type: ignore[arg-type]
        shards = split(config.dataset, config.sampling.n, None).shards
        spec = EngineSpec(number=0, config=config, model_path="", key="key")
        launcher: Launcher
        if RAY_ADDRESS:
            launcher = RayLauncher(spec, None, [str(path)], FAKE, patience=RAY_PATIENCE)
        else:
            gpus = gpus_for(config.engine, "a test") if on_gpus else NoGpus(replicas or 1)
            launcher = LocalLauncher(spec, gpus, folder / "out/logs", FAKE)
        store = ShardStore(open_storage(config.output.path), "key")
        return cls(folder, config, shards, store, EnginePool(launcher, config.engine))

    def run(self) -> list[ShardManifest]:
        """All shards; the pool is closed after. Raises the first shard's error."""
        try:
            with ThreadPoolExecutor(len(self.shards)) as threads:
                return list(threads.map(self.pool.generate, self.shards))
        finally:
            self.pool.close()

    @property
    def view(self) -> PoolView:
        return self.pool.view()

    def rows(self, errors: bool = False) -> list[dict[str, Any]]:
        """The rows of all finished shards."""
        ending = ".errors.jsonl" if errors else ".jsonl"
        lines: list[bytes] = []
        for shard in self.shards:
            lines += self.store.storage.read(f"{self.store.folder}/{shard.name}{ending}").splitlines()
        return [orjson.loads(line) for line in lines]

    def places(self) -> list[tuple[int, int]]:
        """(original_index, sample_id) of every row, sorted: each must be there once."""
        return sorted((r["original_index"], r["sample_id"]) for r in self.rows() + self.rows(errors=True))


def _pool() -> dict[str, Any]:
    if RAY_ADDRESS is None:
        return {}
    return {"pool": "ray", "ray_address": RAY_ADDRESS, "ray_resources": {"engine": 1}}


def all_places(records: int, n: int) -> list[tuple[int, int]]:
    return [(index, sample) for index in range(records) for sample in range(n)]
