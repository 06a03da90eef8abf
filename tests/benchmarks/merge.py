"""Merging and validating a finished run against `cat` and `sha256sum` of the same files, and how both grow.

The shards of each number of records are real files, all with the texts of the first. `cat` is synced to the disk, as
the merged files are. Memory is the growth of the peak of a fresh process.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import tempfile
import time
from pathlib import Path

from tasks.config import ValidationConfig
from tasks.merge_shards import merge
from tasks.records import DatasetManifest, FileManifest, Json, ShardManifest
from tasks.storage import LocalStorage
from tasks.validate_output import validate
from tests.benchmarks.harness import Figures, Result, apart, peak_growth_mb
from tests.shards import KEY, RowMaker, dataset_of, finish_shard, sample_row

FOLDER = f"shards/{KEY}"
VALIDATION = ValidationConfig(max_error_rate=1.0, answer_format="par", label_match="exact")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--shard-size", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="where the files are made (default: the temporary folder)")


def measure(options: argparse.Namespace) -> Result:
    rows = []
    for records in options.records:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            dataset = dataset_of(records, options.shard_size)
            manifests = make_shards(LocalStorage(folder), dataset)
            rounds = [_round(folder, dataset, manifests) for _ in range(options.rounds)]
            rows.append(_row(records, manifests, rounds))
    name = f"merge + validate, GB/s of {rows[-1]['records']:,} records, against cat + sha256sum"
    return Result(rows, {name: round(rows[-1]["ratio"], 3)}, {name: ">= 0.5"})


def make_shards(storage: LocalStorage, dataset: DatasetManifest) -> list[ShardManifest]:
    """Finished shards of one sample a record; the rows of the first, renumbered, are those of all."""
    manifests = [finish_shard(storage, dataset.shards[0], 1, VALIDATION, _row_maker())]
    model = {name: storage.read(f"{FOLDER}/00000{name}") for name in (".jsonl", ".errors.jsonl")}
    split = {name: content.split(b'"original_index":') for name, content in model.items()}
    for shard in dataset.shards[1:]:
        if shard.records < dataset.plan.last_size:
            manifests.append(finish_shard(storage, shard, 1, VALIDATION, _row_maker()))
            continue
        files = {}
        for name, parts in split.items():
            content = _renumbered(parts, shard.start)
            Path(storage.root, FOLDER, f"{shard.name}{name}").write_bytes(content)
            files[name] = FileManifest(
                name=f"{shard.name}{name}",
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                rows=content.count(b"\n"),
            )
        facts = {"index": shard.index, "start": shard.start, "sha256": shard.sha256}
        files_of = {"data": files[".jsonl"], "errors": files[".errors.jsonl"]}
        manifests.append(manifests[0].model_copy(update=facts | files_of))
    return manifests


def _renumbered(parts: list[bytes], start: int) -> bytes:
    first, *others = parts
    pairs = (part.partition(b",") for part in others)
    return first + b"".join(b'"original_index":%d,%s' % (start + int(index), rest) for index, _, rest in pairs)


def _round(folder: str, dataset: DatasetManifest, manifests: list[ShardManifest]) -> Figures:
    ours: Figures = apart(_merge_and_validate, folder, dataset, manifests)
    cat, sha = _cat_and_hash(Path(folder), manifests)
    return ours | {"cat s": cat, "sha256sum s": sha}


def _row(records: int, manifests: list[ShardManifest], rounds: list[Figures]) -> Figures:
    size = sum(m.data.bytes + m.errors.bytes for m in manifests) / 1e9
    best = {name: round(min(found[name] for found in rounds), 3) for name in rounds[0]}
    ours, theirs = best["merge s"] + best["validate s"], best["cat s"] + best["sha256sum s"]
    memory = best.pop("memory MB")
    speeds = {"ours GB/s": size / ours, "cat + sha256sum GB/s": size / theirs, "ratio": theirs / ours}
    return {"records": records, "GB": round(size, 3), **best, **speeds, "memory MB": memory}


def _merge_and_validate(folder: str, dataset: DatasetManifest, manifests: list[ShardManifest]) -> Figures:
    """In a fresh process."""
    storage, taken = LocalStorage(folder), {}

    def work() -> None:
        started = time.perf_counter()
        merged = merge(storage, FOLDER, manifests)
        taken["merge s"] = time.perf_counter() - started
        validate(storage, dataset, manifests, merged, KEY, 1, VALIDATION).require()
        taken["validate s"] = time.perf_counter() - started - taken["merge s"]

    return {"memory MB": peak_growth_mb(work), **taken}


def _row_maker() -> RowMaker:
    random.seed(0)
    text = " ".join("".join(random.choices("abcdefghij", k=5)) for _ in range(10))

    def row(index: int, sample: int) -> Json:
        made = sample_row(index, sample)
        return made | {"predict": f"{made['predict']} {text}"} if "predict" in made else made

    return row


def _cat_and_hash(folder: Path, manifests: list[ShardManifest]) -> tuple[float, float]:
    """Seconds to concatenate the same files and sync them to the disk, and to hash the result."""
    names = [f"{FOLDER}/{m.data.name}" for m in manifests] + [f"{FOLDER}/{m.errors.name}" for m in manifests]
    started = time.perf_counter()
    with (folder / "cat.jsonl").open("wb") as target:
        subprocess.run(["cat", *names], cwd=folder, stdout=target, check=True)
    subprocess.run(["sync", "cat.jsonl"], cwd=folder, check=True)
    cat = time.perf_counter() - started
    subprocess.run(["sha256sum", "cat.jsonl"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return cat, time.perf_counter() - started - cat
