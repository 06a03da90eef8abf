"""How fast a finished run is merged and validated, against `cat` and `sha256sum` of the same files.

    python tests/benchmarks/merge.py [--samples 1000000] [--n 4] [--words 120] [--folder DIR]

Prints one JSON line: bytes, seconds and GB/s of each, and how much the process grew while merging.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tasks.config import ValidationConfig
from tasks.merge_shards import merge
from tasks.records import Json, ShardManifest
from tasks.storage import LocalStorage
from tasks.validate_output import validate
from tests.shards import KEY, RowMaker, dataset_of, finish_shard, sample_row

SHARD_SIZE = 4096
VALIDATION = ValidationConfig(max_error_rate=1.0, answer_format="par", label_match="exact")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--words", type=int, default=120, help="words a completion")
    parser.add_argument("--folder", help="default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(measure(folder, options.samples, options.n, options.words)))


def measure(folder: str, samples: int, n: int, words: int) -> Json:
    """Make the shards, then merge and validate them, then cat and hash them."""
    storage, dataset = LocalStorage(folder), dataset_of(samples // n, SHARD_SIZE)
    row = _row_maker(words)
    manifests = [finish_shard(storage, shard, n, VALIDATION, row) for shard in dataset.shards]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, started = _memory_mb("VmRSS"), time.perf_counter()
    merged = merge(storage, f"shards/{KEY}", manifests)
    merge_seconds = time.perf_counter() - started
    validate(storage, dataset, manifests, merged, KEY, n, VALIDATION).require()
    ours, size = time.perf_counter() - started, merged.data.bytes + merged.errors.bytes
    rss_growth = _memory_mb("VmHWM") - before
    cat, sha = _cat_and_hash(Path(folder), manifests)
    return {
        "samples": merged.data.rows + merged.errors.rows,
        "shards": len(manifests),
        "gigabytes": round(size / 1e9, 3),
        "merge_seconds": round(merge_seconds, 2),
        "validate_seconds": round(ours - merge_seconds, 4),
        "ours_gb_s": round(size / 1e9 / ours, 3),
        "cat_seconds": round(cat, 2),
        "sha256sum_seconds": round(sha, 2),
        "cat_sha256sum_gb_s": round(size / 1e9 / (cat + sha), 3),
        "rss_growth_mb": round(rss_growth, 1),
    }


def _row_maker(words: int) -> RowMaker:
    random.seed(0)
    text = " ".join("".join(random.choices("abcdefghij", k=5)) for _ in range(words))

    def row(index: int, sample: int) -> Json:
        made = sample_row(index, sample)
        return made | {"predict": f"{made['predict']} {text}"} if "predict" in made else made

    return row


def _cat_and_hash(folder: Path, manifests: list[ShardManifest]) -> tuple[float, float]:
    """Seconds to concatenate the same files and sync them to the disk, and to hash the result."""
    names = [f"shards/{KEY}/{m.data.name}" for m in manifests] + [f"shards/{KEY}/{m.errors.name}" for m in manifests]
    started = time.perf_counter()
    with (folder / "cat.jsonl").open("wb") as target:
        subprocess.run(["cat", *names], cwd=folder, stdout=target, check=True)
    subprocess.run(["sync", "cat.jsonl"], cwd=folder, check=True)
    cat = time.perf_counter() - started
    subprocess.run(["sha256sum", "cat.jsonl"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return cat, time.perf_counter() - started - cat


def _memory_mb(what: str) -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{what}:")) / 1024


if __name__ == "__main__":
    main()
