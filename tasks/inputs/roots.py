"""The folders that a dataset lies in: media that its records name are looked for there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.storage import is_remote


def dataset_roots(path: str, files: Sequence[str]) -> list[str]:
    """The folders of the dataset's files, and `dataset.path` itself where it is the folder that all of them are in."""
    roots = {file.rpartition("/")[0] for file in files}
    whole = path.rstrip("/") if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().absolute())
    if all(file.startswith(f"{whole}/") for file in files):
        roots.add(whole)
    return sorted(roots)


def roots_of(where: str, roots: Sequence[str]) -> list[str]:
    """Of these folders those that a record's file is in, the nearest first; all where there is none.

    `where` begins with the file's path. Another folder's media are none of its own, whatever their names.
    """
    mine = [root for root in roots if where.startswith(f"{root.rstrip('/')}/")]
    return sorted(mine, key=len, reverse=True) or list(roots)
