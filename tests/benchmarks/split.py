"""How long splitting takes, next to `wc -l` and a sha256 of the same file: `python -m tests.benchmarks.split`.

Generates a JSONL file of a million records and one GB in a temporary folder, reads it once so that it is in memory,
then times all three alternately and takes the best of each. The target: split <= 3 x wc + sha256, and less than 64 MB
of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tasks.config import DatasetConfig
from tasks.split_dataset import split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the file is generated (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "data.jsonl")
        generate(path, options.records, options.bytes)
        report(measure(path, options.rounds))


def generate(path: Path, records: int, size: int) -> None:
    """Records of varied lengths, `size` bytes in all, more or less."""
    text = "The quick brown fox jumps over the lazy dog. " * (4 * size // records // 45 + 1)
    mean = size // records - 30
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            length = mean // 2 + number * 7919 % (mean + 1)
            file.write(f'{{"id": "{number:07d}", "prompt": "{text[:length]}"}}\n')


def measure(path: Path, rounds: int) -> dict[str, float]:
    """The best seconds of each, and the growth of this process's peak memory."""
    split(DatasetConfig(path=str(path), limit=10), n=1)  # imports numpy, and reads what it needs of the libraries
    peak = _peak_memory()
    times: dict[str, list[float]] = {"wc": [], "sha256": [], "split": []}
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
    for _ in range(rounds):
        times["wc"].append(_seconds(lambda: _command("wc", "-l", str(path))))
        times["sha256"].append(_seconds(lambda: _sha256(path)))
        times["split"].append(_seconds(lambda: split(DatasetConfig(path=str(path)), n=1)))
    best = {name: min(seconds) for name, seconds in times.items()}
    limit = 3 * best["wc"] + best["sha256"]
    return best | {
        "limit": limit,
        "ratio": best["split"] / limit,
        "memory_growth_mb": (_peak_memory() - peak) / 1e6,
        "file_mb": path.stat().st_size / 1e6,
    }


def report(figures: dict[str, float]) -> None:
    print(f"{'':24}{'seconds':>10}{'MB/s':>10}")
    for name in ("wc", "sha256", "split", "limit"):
        print(f"{name:24}{figures[name]:10.3f}{figures['file_mb'] / figures[name]:10.0f}")
    print(f"split / (3 wc + sha256): {figures['ratio']:.2f} (target: at most 1)")
    print(f"growth of memory: {figures['memory_growth_mb']:.0f} MB (target: under 64)")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _command(*command: str) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _sha256(path: Path) -> None:
    """As fast as this machine can: OpenSSL's is several times faster than some `sha256sum`s."""
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _peak_memory() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
