"""One run at a time in an output folder. The lock of a local folder ends with the process that holds it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import RunError
from tasks.storage import is_remote


@contextlib.contextmanager
def output_lock(output_path: str) -> Iterator[None]:
    """Hold the folder. Raises RunError while another run holds it, and where it cannot be written to."""
    if is_remote(output_path):
        yield
        return
    folder = Path(output_path.removeprefix("file://")).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"output.path: {output_path} is in use by another run that still lives") from None
    except OSError as error:
        raise RunError(f"output.path: {output_path} cannot be written to: {error}") from error
    try:
        yield
    finally:
        lock.release()
