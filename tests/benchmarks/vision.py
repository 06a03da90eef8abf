"""How long the engine waits for images: prepared in threads ahead of it, one by one as it is fed, or batch by batch.

Photographs of scikit-image, each in several crops, saved as JPEG. The engine waits while it has nothing in flight,
between its first request and its last answer. `one by one` is our feeder with its threads taken away; the usual script
prepares 16 records, generates them, and prepares the next 16.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Figures, Result, apart

THREADS, ONE_BY_ONE, USUAL = "in threads", "one by one", "usual script"
BATCH = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--side", type=int, nargs=2, default=(1600, 1200), help="pixels of a photograph")
    parser.add_argument("--max-pixels", type=int, default=200_704, help="what it is scaled down to")


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), options.records, tuple(options.side))
        rows = [
            {"prepared": side} | apart(_run, side, folder, options.max_pixels, options.max_tokens)
            for side in (THREADS, ONE_BY_ONE, USUAL)
        ]
    figures = {f"share of time the engine waited, {row['prepared']}": row["engine waited"] for row in rows}
    width, height = options.side
    notes = [
        f"{options.records} photographs of {width} x {height}, a tiny Qwen2.5-VL, {options.max_tokens} tokens each"
    ]
    return Result(rows, figures, {}, notes)


class _Watched:
    """An engine whose time with nothing in flight is counted."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._in_flight = 0
        self._since = 0.0
        self.began = 0.0
        self.ended = 0.0
        self.idle = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, *arguments: Any) -> Any:
        now = time.perf_counter()
        self.began = self.began or now
        if not self._in_flight:
            self.idle += now - (self._since or now)
        self._in_flight += 1
        try:
            return await self._engine.generate(*arguments)
        finally:
            self._in_flight -= 1
            self._since = self.ended = time.perf_counter()


class _Inline(Executor):
    """No threads: what is submitted is done at once, by who submits it."""

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


def _run(side: str, folder: str, max_pixels: int, max_tokens: int) -> Figures:
    from tasks.config import GenerateConfig
    from tasks.engines.base import EngineSpec
    from tasks.engines.vllm_args import cpu_environment
    from tests import models

    model = str(models.cached(models.tiny_qwen25_vl))
    config = GenerateConfig.model_validate(
        {
            "model": {"source": model},
            "dataset": {"path": f"{folder}/data.jsonl", "shard_size": 1_000_000},
            "prompt": {"max_pixels": max_pixels},
            "sampling": {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 1.0},
            "engine": {"dtype": "float32", "max_model_len": 2048, "max_num_seqs": 2 * BATCH},
            "output": {"path": f"{folder}/{side}"},
        }
    )
    os.environ.update(cpu_environment(config.engine) | {"VLLM_LOGGING_LEVEL": "ERROR"})
    from tasks.engines.vllm_engine import VLLMEngine

    spec = EngineSpec(number=0, config=config, model_path=model, key="key", dataset_roots=(folder,))
    started = asyncio.run(VLLMEngine.start(spec))
    asyncio.run(_batches(started, config, most=1))  # what an engine does once only
    engine = _Watched(started)
    asyncio.run(_batches(engine, config) if side == USUAL else _fed(engine, config, side == THREADS))
    seconds = engine.ended - engine.began
    return {
        "seconds": round(seconds, 2),
        "records a second": round(_count(folder) / seconds, 2),
        "engine waited": round(engine.idle / seconds, 4),
    }


async def _fed(engine: Any, config: Any, threads: bool) -> None:
    from tasks.engines import feeder
    from tasks.shard_store import ShardStore
    from tasks.split_dataset import split
    from tasks.storage import open_storage
    from tests.engine_jobs import feed

    def take_threads_away(fed: feeder.Feeder) -> None:
        if not threads:
            fed._preparers = _Inline()  # type: ignore[assignment]
            fed._ready = asyncio.Queue(1)

    store = ShardStore(open_storage(config.output.path), "key")
    (shard,) = split(config.dataset, 1, None).shards
    await feed(engine, config, store, shard, take_threads_away)


async def _batches(engine: Any, config: Any, most: int | None = None) -> None:
    from tasks.dataset import read_shard
    from tasks.engines.base import Ask
    from tasks.prompts.conversation import read_conversation
    from tasks.records import Record
    from tasks.split_dataset import split

    (shard,) = split(config.dataset, 1, None).shards
    records = [record for record in read_shard(shard) if isinstance(record, Record)][:most]
    for at in range(0, len(records), BATCH):
        batch = records[at : at + BATCH]
        prepared = [engine.prepare(read_conversation(r, config.dataset, config.prompt)) for r in batch]
        await asyncio.gather(*(engine.generate(str(at + i), p, Ask(n=1)) for i, p in enumerate(prepared)))


def _count(folder: str) -> int:
    return sum(1 for _ in Path(folder, "data.jsonl").open())


def _write(folder: Path, records: int, side: tuple[int, ...]) -> None:
    """Photographs, each cropped a little differently each time, so that no two records share one."""
    from PIL import Image

    photos = list(_photos())
    with (folder / "data.jsonl").open("w") as lines:
        for number in range(records):
            photo = photos[number % len(photos)]
            cut = number // len(photos) * 4
            image = photo.crop((cut, cut, *photo.size)).resize((side[0], side[1]), Image.Resampling.BICUBIC)
            image.save(folder / f"{number}.jpg", quality=90)
            lines.write(json.dumps({"prompt": "Describe the photograph.", "images": [f"{number}.jpg"]}) + "\n")


def _photos() -> Iterator[Any]:
    from PIL import Image

    from tests.prompts.conftest import PHOTOS

    for path in sorted([*PHOTOS.glob("*.png"), *PHOTOS.glob("*.jpg")]):
        with Image.open(path) as image:
            if min(image.size) >= 256:
                yield image.convert("RGB")
