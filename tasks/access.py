"""Before anything is downloaded or started: may the run read its dataset and its model, and write its output?

One small request or two for each place, and an error of one line that names the field.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from tasks.config import GenerateConfig
from tasks.errors import RunError
from tasks.inputs.listing import list_inputs
from tasks.inputs.results import others_files
from tasks.s3_access import open_s3, s3_errors
from tasks.s3_patience import quick_filesystem
from tasks.storage import open_range


def require_access(config: GenerateConfig) -> None:
    """Raises RunError for a dataset that is not there or may not be read, for a bucket, credentials or rights of any of
    the three places that are missing or wrong, for an S3 that does not answer, and for an output folder with files in
    it that the run would write over and no run made."""
    try:
        _require(config)
    except ConnectionError as error:
        raise RunError(str(error)) from error


def _require(config: GenerateConfig) -> None:
    if _is_s3(config.output.path):
        _require_output(config.output.path)
    _require_dataset(config.dataset.path, config.output.path)
    _require_no_others(config.output.path)
    if _is_s3(config.model.source):
        _require_model(config.model.source)


def _require_output(path: str) -> None:
    """List, write, read and remove a small object, as the run will."""
    with s3_errors(path, "output.path"):
        fs, base = quick_filesystem(path)
    bucket, _, prefix = base.rstrip("/").partition("/")
    place = {"Bucket": bucket, "Key": f"{prefix}/.access-{uuid.uuid4().hex}".lstrip("/")}
    requests: dict[str, Callable[[], object]] = {
        # First: some stores make a bucket that is missing when something is put into it.
        "list": lambda: fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=place["Key"], MaxKeys=1),
        "write to": lambda: fs.call_s3("put_object", **place, Body=b"may this run write here?"),
        "read": lambda: fs.call_s3("get_object", **place),
        "remove files from": lambda: fs.call_s3("delete_object", **place),
    }
    for what, request in requests.items():
        with s3_errors(path, "output.path", what):
            request()


def _require_no_others(path: str) -> None:
    if found := others_files(path):
        raise RunError(
            f"output.path: {path} holds {', '.join(found)}, which no run made there: choose another folder, or move "
            "what it holds"
        )


def _require_dataset(path: str, output: str) -> None:
    if not _is_s3(path):
        first = list_inputs(path, output)[0]
        try:
            next(open_range(first, 0, 1), b"")
        except PermissionError as error:
            raise RunError(f"dataset.path: {first} may not be read: {error}") from error
        return
    open_s3(path.split("*", 1)[0], "dataset.path")
    first = list_inputs(path, output)[0]
    with s3_errors(first, "dataset.path"):
        next(open_range(first, 0, 1), b"")


def _require_model(source: str) -> None:
    fs, base = open_s3(source, "model.source")
    with s3_errors(source, "model.source"):
        files = [path for path, entry in fs.find(base, detail=True).items() if entry["type"] == "file"]
        if files:  # that there are none is told when it is downloaded
            fs.cat_file(files[0], start=0, end=1)


def _is_s3(path: str) -> bool:
    return path.startswith("s3://")
