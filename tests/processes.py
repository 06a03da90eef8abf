"""Processes of a run, found in /proc."""

from __future__ import annotations

import os
from pathlib import Path


def engines_of(output: Path, number: str = "*") -> list[int]:
    """Processes that write to the log of the run's engine, or of any: engines first, then what they started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "fd/2").readlink().match(f"{output}/logs/engine-{number}.log"):
                found.append(int(process.name))
        except OSError:
            continue
    return sorted(found, key=lambda pid: (not _leads_a_group(pid), pid))


def _leads_a_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False
