"""What s3fs tries again: a store that restarts, is overloaded or cut off answers again some minutes later."""

from __future__ import annotations

import logging
import time
from typing import Any

import fsspec

log = logging.getLogger("datagen.s3")

TRIES = 30
"""Of each request; s3fs waits up to 15 s between two, so a store may be away for more than five minutes."""
CONFIG: dict[str, Any] = {"read_timeout": 60, "retries": {"total_max_attempts": 2}}
"""botocore's settings: a copy of many bytes within S3 takes more than s3fs's 15 s; trying again is s3fs's part."""
_QUICK_CONFIG: dict[str, Any] = {"retries": {"total_max_attempts": 2}}
_TELL_SECONDS = 30.0

_told_at = 0.0


def patient_filesystem(url: str) -> tuple[Any, str]:
    """s3fs's filesystem of an s3:// URL, and the path there; a store that is away for some minutes is waited for."""
    fs, place = _filesystem(url, CONFIG)
    fs.retries = TRIES
    return fs, place


def quick_filesystem(url: str) -> tuple[Any, str]:
    """The same, but a store that does not answer is an error after some seconds."""
    return _filesystem(url, _QUICK_CONFIG)


def _filesystem(url: str, config: dict[str, Any]) -> tuple[Any, str]:
    from s3fs.core import set_custom_error_handler

    set_custom_error_handler(_handle)
    # Listings are not cached: other processes (engines) write below the same folder.
    fs, place = fsspec.core.url_to_fs(url, use_listings_cache=False, config_kwargs=config)
    return fs, str(place)


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
