"""Splitting a dataset against `cat`, `wc -l` and `sha256sum` of the same file, and how time and memory grow.

Of each number of records a JSONL file is generated in a temporary folder and read once, so that it is in memory; then
all sides are timed alternately, and the best of each is taken. Memory is the growth of the peak of a fresh process.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import tempfile
from pathlib import Path

from tasks.config import DatasetConfig
from tasks.split_dataset import split
from tests.benchmarks.harness import Figures, Result, apart, peak_growth_mb, seconds

BLOCK = 10_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--bytes", type=int, default=200, help="bytes a record, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files are generated (default: the temporary folder)")


def measure(options: argparse.Namespace) -> Result:
    rows = []
    for records in options.records:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder, "data.jsonl")
            generate(path, records, options.bytes)
            rows.append(_row(path, records, options.rounds))
    last = rows[-1]
    limit = 3 * last["wc -l s"] + last["sha256 s"]
    figures = {
        f"split of {last['records']:,} records, growth of memory, MB": last["memory MB"],
        "split / (3 × wc -l + sha256), seconds": round(last["split s"] / limit, 3),
    }
    asked = dict(zip(figures, ["<= 64", "<= 1"], strict=True))
    notes = ["'sha256' is OpenSSL's, several times faster than some `sha256sum`s"]
    return Result(rows, figures, asked, notes)


def generate(path: Path, records: int, size: int) -> None:
    """Records of varied lengths, `size` bytes each on average; the same block of lines again and again, renumbered."""
    text = "The quick brown fox jumps over the lazy dog. " * (2 * size // 45 + 1)
    mean = max(2, size - 40)
    texts = [text[: mean // 2 + number * 7919 % (mean + 1)] for number in range(BLOCK)]
    with path.open("w", encoding="ascii") as file:
        for start in range(0, records, BLOCK):
            block = texts[: records - start]
            file.write("".join(f'{{"id": "{start + at:08d}", "prompt": "{text}"}}\n' for at, text in enumerate(block)))


def _row(path: Path, records: int, rounds: int) -> Figures:
    commands = {name: [*name.split(), str(path)] for name in ("cat", "wc -l", "sha256sum")}
    split(DatasetConfig(path=str(path), limit=10), n=1)  # imports what it needs
    times: dict[str, list[float]] = {name: [] for name in (*commands, "sha256", "split")}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(seconds(lambda command=command: _silently(command)))
        times["sha256"].append(seconds(lambda: _sha256(path)))
        times["split"].append(seconds(lambda: split(DatasetConfig(path=str(path)), n=1)))
    best = {f"{name} s": round(min(found), 3) for name, found in times.items()}
    size = path.stat().st_size / 1e9
    growth = apart(_memory, str(path))
    return {
        "records": records,
        "GB": round(size, 3),
        **best,
        "split GB/s": size / min(times["split"]),
        "memory MB": growth,
    }


def _memory(path: str) -> float:
    """In a fresh process: how far splitting raises the peak of its memory."""
    split(DatasetConfig(path=path, limit=10), n=1)
    return peak_growth_mb(lambda: split(DatasetConfig(path=path), n=1))


def _silently(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _sha256(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
