"""Many settings of prompt and sampling on one real vLLM engine: a model is loaded once, in a process of its own.

The prompt formats, the feeder and the files are the flow's own; only Prefect and the pool are left out.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.config import GenerateConfig
from tasks.engines.base import EngineSpec
from tasks.engines.feeder import Feeder
from tasks.engines.vllm_args import cpu_environment
from tasks.records import Json, Shard
from tasks.shard_store import ShardStore
from tasks.split_dataset import split
from tasks.storage import open_storage

Sections = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """The rows of a job, read back from its shard's files."""

    rows: list[Json]
    errors: list[Json]


def run_jobs(folder: Path, model: Path, engine: Json, jobs: dict[str, tuple[list[Json], Sections]]) -> dict[str, Made]:
    """Make the samples of each job: its records, and its sections of the config (prompt, sampling, validation)."""
    for name, (records, sections) in jobs.items():
        place = folder / name
        place.mkdir()
        (place / "data.jsonl").write_bytes(b"\n".join(map(orjson.dumps, records)))
        config = {
            "model": {"source": str(model)},
            "dataset": {"path": str(place / "data.jsonl")},
            "output": {"path": str(place / "out")},
            "engine": {"dtype": "float32"} | engine,
            **sections,
        }
        (place / "config.json").write_bytes(orjson.dumps(config))
    places = [str(folder / name) for name in jobs]
    command = [sys.executable, "-m", "tests.engine_jobs", *places]
    environment = {**os.environ, "VLLM_CACHE_ROOT": str(folder / "cache")}  # the model is new to vLLM
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: _read(folder / name) for name in jobs}


def main(places: list[Path]) -> None:
    """Run the jobs of these folders on one engine, made for the first."""
    configs = [GenerateConfig.model_validate_json((place / "config.json").read_bytes()) for place in places]
    os.environ.update(cpu_environment(configs[0].engine))
    from vllm.model_executor.models import registry

    from tasks.engines.vllm_engine import VLLMEngine
    from tasks.prompts import make_format

    registry._SUBPROCESS_COMMAND = ["false"]  # a start needs no process to look at the model's class
    model = configs[0].model.source
    first = asyncio.run(VLLMEngine.start(EngineSpec(number=0, config=configs[0], model_path=model, key="key")))
    for place, config in zip(places, configs, strict=True):
        engine = VLLMEngine(first._core, make_format(model, config.prompt, [str(place)]), config.sampling)
        store = ShardStore(open_storage(config.output.path), "key")
        (shard,) = split(config.dataset, config.sampling.n, None).shards
        asyncio.run(feed(engine, config, store, shard))
    os._exit(0)  # the engine's threads have nothing left to do


async def feed(
    engine: Any,
    config: GenerateConfig,
    store: ShardStore,
    shard: Shard,
    change: Callable[[Feeder], None] = lambda feeder: None,
) -> None:
    """Have a shard made by a feeder, to which `change` may do what no setting does."""
    done = asyncio.get_running_loop().create_future()

    def hear(event: Json) -> None:
        if event["event"] in ("shard_done", "shard_failed"):
            done.set_result(event)

    feeder = Feeder(engine, "engine-0", config, store, hear)
    change(feeder)
    feeder.add(shard)
    feeding = asyncio.create_task(feeder.run())
    await asyncio.wait({feeding, done}, return_when=asyncio.FIRST_COMPLETED)
    if feeding.done():
        feeding.result()
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)
    if done.result()["event"] != "shard_done":
        raise RuntimeError(done.result())


def _read(place: Path) -> Made:
    shard = place / "out/shards/key/00000"
    rows, errors = (
        [orjson.loads(line) for line in Path(f"{shard}{ending}.jsonl").read_bytes().splitlines()]
        for ending in ("", ".errors")
    )
    return Made(rows, errors)


if __name__ == "__main__":
    main([Path(place) for place in sys.argv[1:]])
