"""Splitting and merging on S3, against a plain download and upload of the same bytes.

The server is SeaweedFS on the same machine, sharing its cores. 'download' and 'upload' are s3fs's `get_file` and
`put_file` of one object of the same size. Large shards are copied by S3 itself, small ones are sent again. Each side
runs in a fresh process; memory is the growth of its peak, libraries loaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.config import DatasetConfig, ValidationConfig
from tasks.merge_shards import merge
from tasks.records import Json, ShardManifest
from tasks.split_dataset import split
from tasks.storage import filesystem, open_storage, write
from tests.benchmarks.harness import Figures, Result, apart, peak_growth_mb, seconds
from tests.benchmarks.split import generate
from tests.seaweed import running_seaweed
from tests.shards import KEY, dataset_of, finish_shard, sample_row

FOLDER = f"shards/{KEY}"
ROW_BYTES = 2000
FORMATS = {"jsonl": ("jsonl", None), "jsonl, zst": ("jsonl", "zst"), "parquet": ("parquet", None)}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)


def measure(options: argparse.Namespace) -> Result:
    size = options.megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as folder, running_seaweed() as server:
        os.environ |= server.environment
        server.bucket("bench")
        rows = [_split_row(Path(folder), size, options.rounds)]
        for name, shard_bytes in (("large", 64_000_000), ("small", 4_000_000)):
            rows += _merge_rows(Path(folder), size, min(shard_bytes, size), name, options.rounds)
    plain = rows[1]["download s"] + rows[1]["upload s"]
    figures = {
        "split + merge / (download + upload), seconds": round((rows[0]["ours s"] + rows[1]["ours s"]) / plain, 3),
        "growth of memory at most, MB": max(row["memory MB"] for row in rows),
    }
    return Result(rows, figures, {"growth of memory at most, MB": "< 256"})


def _split_row(folder: Path, size: int, rounds: int) -> Figures:
    path = folder / "data.jsonl"
    generate(path, size // ROW_BYTES, ROW_BYTES)
    filesystem("s3://bench")[0].put_file(str(path), "bench/data.jsonl")
    plain = _best(rounds, _transfer, str(path), "bench/data.jsonl")
    ours = _best(rounds, _split, "s3://bench/data.jsonl")
    return _row("split", path.stat().st_size, ours, plain, plain["download s"])


def _merge_rows(folder: Path, size: int, shard_bytes: int, name: str, rounds: int) -> list[Figures]:
    root = f"s3://bench/{name}"
    manifests = _make_shards(root, size // shard_bytes, shard_bytes // ROW_BYTES)
    others = [what for what in FORMATS if what != "jsonl" and name == "large"]
    ours = {what: _best(rounds, _merge, root, manifests, what) for what in (*others, "jsonl")}
    path = folder / "whole"
    filesystem(root)[0].get_file(f"bench/{name}/data.jsonl", str(path))
    plain = _best(rounds, _transfer, str(path), f"bench/{name}/data.jsonl")
    both = plain["download s"] + plain["upload s"]
    size = path.stat().st_size
    return [_row(f"merge, {name} shards, {what}", size, ours[what], plain, both) for what in ("jsonl", *others)]


def _make_shards(root: str, count: int, records: int) -> list[ShardManifest]:
    """So many shards, with the rows of the first; merging does not look at what a row says."""
    storage, dataset = open_storage(root), dataset_of(count * records, records)
    first = finish_shard(storage, dataset.shards[0], 1, ValidationConfig(), _long_row)
    data, errors = (storage.read(f"{FOLDER}/{file.name}") for file in (first.data, first.errors))
    made = [first]
    for shard in dataset.shards[1:]:
        write(storage, f"{FOLDER}/{shard.name}.jsonl", data)
        write(storage, f"{FOLDER}/{shard.name}.errors.jsonl", errors)
        files = {
            "data": first.data.model_copy(update={"name": f"{shard.name}.jsonl"}),
            "errors": first.errors.model_copy(update={"name": f"{shard.name}.errors.jsonl"}),
        }
        made.append(first.model_copy(update={"index": shard.index, "start": shard.start, **files}))
    return made


def _row(what: str, size: int, ours: Figures, plain: Figures, of: float) -> Figures:
    times = {"ours s": ours["ours s"], "download s": plain["download s"], "upload s": plain["upload s"]}
    return {"what": what, "GB": round(size / 1e9, 3), **times, "ratio": round(ours["ours s"] / of, 3),
            "memory MB": ours["memory MB"]}  # fmt: skip


def _best(rounds: int, work: Callable[..., Figures], *arguments: Any) -> Figures:
    """The best seconds, and the most memory, of some fresh processes."""
    found = [apart(work, *arguments) for _ in range(rounds)]
    return {
        name: max(f[name] for f in found) if name == "memory MB" else round(min(f[name] for f in found), 2)
        for name in found[0]
    }


def _transfer(path: str, remote: str) -> Figures:
    fs, _ = filesystem("s3://bench")
    fs.ls("bench")
    return {
        "download s": seconds(lambda: fs.get_file(remote, f"{path}.copy")),
        "upload s": seconds(lambda: fs.put_file(path, "bench/uploaded")),
    }


def _split(url: str) -> Figures:
    split(DatasetConfig(path=url, limit=10), n=1)
    return _measured(lambda: split(DatasetConfig(path=url), n=1))


def _merge(root: str, manifests: list[ShardManifest], what: str) -> Figures:
    import pyarrow.parquet  # noqa: F401

    storage = open_storage(root)
    storage.names("")
    return _measured(lambda: merge(storage, FOLDER, manifests, *FORMATS[what]))


def _measured(work: Callable[[], object]) -> Figures:
    taken: list[float] = []
    memory = peak_growth_mb(lambda: taken.append(seconds(work)))
    return {"ours s": taken[0], "memory MB": memory}


def _long_row(index: int, sample: int) -> Json:
    made = sample_row(index, sample)
    filler = f"{index * 2654435761 % 2**32:08x} word " * (ROW_BYTES // 14)
    return made | {"predict": f"{made['predict']} {filler}"} if "predict" in made else made
