"""One run at a time in an output folder. The lock ends with the process that holds it, on a disk and on S3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import RunError
from tasks.storage import LocalStorage, is_remote


@contextlib.contextmanager
def output_lock(output_path: str) -> Iterator[None]:
    """Hold the folder. Raises RunError while another run holds it, and where it cannot be written to."""
    with _s3_lock(output_path) if is_remote(output_path) else _local_lock(output_path):
        yield


@contextlib.contextmanager
def _local_lock(output_path: str) -> Iterator[None]:
    folder = Path(output_path.removeprefix("file://")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
        LocalStorage(str(folder)).drop_unfinished()
    except Timeout:
        raise RunError(f"output.path: {output_path} is in use by another run that still lives") from None
    except OSError as error:
        raise RunError(f"output.path: {output_path} cannot be written to: {error}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _s3_lock(output_path: str) -> Iterator[None]:
    from tasks.s3_access import s3_errors
    from tasks.s3_lock import S3Lock
    from tasks.s3_storage import S3Storage

    with s3_errors(output_path, "output.path", "write to"):
        lock = S3Lock(output_path)
        lock.acquire()
    try:
        S3Storage(output_path).drop_unfinished_uploads()
        yield
    except KeyboardInterrupt:
        if lock.lost:
            raise RunError(
                f"output.path: another run has taken {output_path} over, as this one's lock was not renewed in time: "
                "this one stops"
            ) from None
        raise
    finally:
        lock.release()
