"""What s3fs tries again: a store that restarts, is overloaded or cut off answers again some minutes later."""

from __future__ import annotations

import logging
import time
from typing import Any

log = logging.getLogger("datagen.s3")

TRIES = 30
"""Of each request; s3fs waits up to 15 s between two, so a store may be away for more than five minutes."""
CONFIG: dict[str, Any] = {"read_timeout": 60}
"""botocore's settings: a copy of many bytes within S3 takes more than s3fs's 15 s."""
_TELL_SECONDS = 30.0

_told_at = 0.0


def be_patient() -> None:
    """Let s3fs, in this process, try again what `is_transient` says."""
    from s3fs.core import set_custom_error_handler

    set_custom_error_handler(_handle)


def is_transient(error: BaseException) -> bool:
    """Whether S3 could not be reached or failed inside; what it refuses, it will refuse again."""
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NotReached

    if isinstance(error, ClientError):
        answer: dict[str, Any] = error.response.get("ResponseMetadata", {})
        return int(answer.get("HTTPStatusCode", 0)) >= 500
    return isinstance(error, NotReached | HTTPClientError)


def _handle(error: BaseException) -> bool:
    global _told_at
    if not is_transient(error):
        return False
    if time.monotonic() - _told_at > _TELL_SECONDS:
        _told_at = time.monotonic()
        log.warning("S3 does not answer (%s): trying again", type(error).__name__)
    return True
