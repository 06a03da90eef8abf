"""Looks into the output folder of a flow that runs, and at its processes."""

from __future__ import annotations

import contextlib
import glob
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from tests.conftest import ROOT

Place = tuple[int, int]


def start_flow(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """`python flows/generate.py` with arguments, not waited for."""
    command = [sys.executable, str(ROOT / "flows/generate.py"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return parsed(path.read_bytes())


def parsed(content: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in content.splitlines()]


def made(output: Path) -> dict[Place, Any]:
    """The rows that stand in chunks and finished shards."""
    found: dict[Place, Any] = {}
    for path in map(Path, glob.glob(f"{output}/shards/*/*/chunk-*.jsonl")):
        try:
            rows = [line["row"] for line in rows_of(path)]
        except FileNotFoundError:
            continue  # its shard has just been finished
        found |= {place_of(row): row for row in rows}
    for path in map(Path, glob.glob(f"{output}/shards/*/*.jsonl")):
        found |= {place_of(row): row for row in rows_of(path)}
    return found


def place_of(row: dict[str, Any]) -> Place:
    return row["original_index"], row["sample_id"]


def listens_to(pid: int) -> set[str]:
    """Addresses, in /proc/net's hex, that a process accepts TCP connections at."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


def wait_until(true: Callable[[], object], seconds: float = 120, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not _holds(true):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)


def _holds(true: Callable[[], object]) -> bool:
    """Whether it holds. A folder that vanishes while it is looked through: not yet."""
    try:
        return bool(true())
    except FileNotFoundError:
        return False
