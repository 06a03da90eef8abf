"""Which files a dataset's path means: a file, a glob or a folder; local or remote."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import RunError
from tasks.inputs.results import is_result, made_by_run, name_below, places_of
from tasks.s3_access import refused
from tasks.storage import filesystem, is_remote

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv")


def list_inputs(path: str, output: str | None = None) -> list[str]:
    """The dataset's files, sorted; local ones as absolute paths, for engines may run elsewhere.

    A folder is searched with all below it, hidden files excepted; only files of a known format count. A linked folder
    counts once. Nothing below an `output` folder inside the dataset's counts; of one that is the dataset's own folder,
    the results of earlier runs do not.
    Raises RunError where nothing matches, the store refuses, or a run would write over a file of the dataset.
    """
    try:
        found = _remote_files(path) if is_remote(path) else _local_files(path.removeprefix("file://"))
    except FileNotFoundError:
        found = []
    except PermissionError as error:
        if path.startswith("s3://"):
            raise refused(error, path, "dataset.path") from None
        raise RunError(f"dataset.path: {path}: access denied ({error})") from error
    files = sorted(file for file in found if file.endswith(SUFFIXES))
    if not files:
        raise RunError(f"dataset.path: {path}: {_nothing(path, found)} (known formats: {', '.join(SUFFIXES)})")
    return files if output is None else _without_results(path, files, output)


def _without_results(path: str, files: list[str], output: str) -> list[str]:
    folder = places_of(output)
    inside = {file: name for file in files if (name := name_below(file, folder)) is not None}
    base = name_below(_fixed_part(path), folder)
    left_out = set(inside) if base is None else {file for file, name in inside.items() if is_result(name)}
    if left_out and base is not None and (base or not made_by_run(output)):
        raise RunError(f"output.path: {output} holds the dataset's own file {min(left_out)}: choose another folder")
    kept = [file for file in files if file not in left_out]
    if not kept:
        raise RunError(f"dataset.path: {path}: all that is there lies in output.path ({output})")
    return kept


def _fixed_part(path: str) -> str:
    """The file or folder itself; of a glob, the folder that all it matches lies in."""
    if not glob.has_magic(path) or (not is_remote(path) and os.path.lexists(places_of(path)[0])):
        return path
    return path[: path.rfind("/", 0, min(path.find(mark) for mark in "*?[" if mark in path)) + 1]


def _nothing(path: str, found: list[str]) -> str:
    if found:
        return "no file of a known format there"
    # The hub does not tell a gated or private dataset from none.
    return "no such file or folder" + (", or HF_TOKEN lacks access" if path.startswith("hf://") else "")


def _local_files(path: str) -> list[str]:
    place = Path(path).expanduser().absolute()
    if place.is_file():
        return [str(place)]
    if place.is_dir():
        return [str(file) for file in _walk(place)]
    names = sorted(name for name in glob.glob(str(place), recursive=True) if Path(name).is_file())  # noqa: PTH207
    # A folder that links to one above it is matched again and again.
    return list({(os.path.realpath(Path(name).parent), Path(name).name): name for name in reversed(names)}.values())


def _walk(top: Path) -> Iterator[Path]:
    """The files below a folder and its links, each folder once: by its own name where that lies below, too."""
    waiting, seen = deque([top]), set()
    while waiting:
        folder = waiting.popleft()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        with contextlib.suppress(PermissionError):
            for entry in sorted(folder.iterdir()):
                if entry.name.startswith("."):
                    continue
                if entry.is_file():
                    yield entry
                elif entry.is_dir():
                    (waiting.append if entry.is_symlink() else waiting.appendleft)(entry)


def _remote_files(path: str) -> list[str]:
    try:
        fs, place = filesystem(path)
    except (ValueError, ImportError) as error:
        raise RunError(f"dataset.path: {path}: local, s3:// and hf:// paths are known ({error})") from None
    if glob.has_magic(place):
        names = [name for name, info in fs.glob(place, detail=True).items() if info["type"] == "file"]
    elif fs.isfile(place):
        names = [place]
    else:
        names = [name for name in fs.find(place) if not _hidden(name.removeprefix(place))]
    return [str(fs.unstrip_protocol(name)) for name in names]


def _hidden(inside: str) -> bool:
    return any(part.startswith(".") for part in inside.split("/"))
