"""Which files a dataset's path means: a file, a glob or a folder; local or remote."""

from __future__ import annotations

import glob
from pathlib import Path

from tasks.errors import RunError
from tasks.s3_access import refused
from tasks.storage import filesystem, is_remote

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv")


def list_inputs(path: str) -> list[str]:
    """The dataset's files, sorted; local ones as absolute paths, for engines may run elsewhere.

    A folder is searched with all below it, hidden files excepted; only files of a known format count.
    Raises RunError where nothing matches, or the store refuses.
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
    return files


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
        return [str(file) for file in place.rglob("*") if file.is_file() and not _hidden(str(file.relative_to(place)))]
    return [name for name in glob.glob(str(place), recursive=True) if Path(name).is_file()]  # noqa: PTH207


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
