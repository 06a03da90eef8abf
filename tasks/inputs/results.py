"""The results in an output folder: a run reads none of them as input, and takes no other file's place."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tasks.outputs.formats import SUFFIXES
from tasks.storage import filesystem, is_remote

MERGED = frozenset(f"{kind}{suffix}" for kind in ("data", "errors") for suffix in SUFFIXES)
"""What a run writes or removes beside its folders."""
_MADE_BY_RUNS = re.compile(r"shards/(plan-n\d+\.json|[0-9a-f]{16})|manifest\.json")


def places_of(path: str) -> tuple[str, ...]:
    """The path as it is written, absolute, and where its links lead."""
    if is_remote(path):
        return (path.rstrip("/"),)
    local = Path(path.removeprefix("file://")).expanduser().absolute()
    return (os.path.normpath(local), os.path.realpath(local))


def name_below(path: str, folder: tuple[str, ...]) -> str | None:
    """The path relative to the folder that has these places: "" is the folder itself; None: it lies elsewhere."""
    for place in places_of(path):
        for root in folder:
            if f"{place}/".startswith(f"{root.rstrip('/')}/"):
                return place[len(root) :].lstrip("/")
    return None


def is_result(name: str) -> bool:
    """Whether a run writes, or removes, this file of its output folder."""
    return name in MERGED or name.startswith("shards/")


def made_by_run(output: str) -> bool:
    """Whether a run has worked in the folder: it holds a plan, a folder of shards, or a manifest."""
    return any(
        _MADE_BY_RUNS.fullmatch(name) for start in ("shards/", "manifest.json") for name in _begun(output, start)
    )


def others_files(output: str) -> list[str]:
    """What a run would write over, or remove, in a folder that no run has worked in."""
    found = [name for start in ("data.", "errors.") for name in _begun(output, start) if name in MERGED]
    return [] if not found or made_by_run(output) else sorted(found)


def _begun(output: str, start: str) -> list[str]:
    """Names in the folder, of files and folders, that begin so; of a bucket one request, and the first thousand."""
    if not is_remote(output):
        folder = Path(places_of(output)[-1])
        return [found.relative_to(folder).as_posix() for found in folder.glob(f"{start}*")]
    fs, place = filesystem(output)
    bucket, _, prefix = place.rstrip("/").partition("/")
    root = f"{prefix}/" if prefix else ""
    answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{root}{start}", Delimiter="/")
    keys = [entry["Key"] for entry in answer.get("Contents", ())]
    folders = [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]
    return [key.removeprefix(root).rstrip("/") for key in (*keys, *folders)]
