"""Whether an s3:// folder can be used at all, told in one line: credentials, bucket, rights, endpoint.

Credentials come by s3fs's usual ways (AWS_* variables, ~/.aws, the machine's role) and are never read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tasks.errors import RunError
from tasks.s3_patience import patient_filesystem, quick_filesystem

_SEE = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure"}


def open_s3(url: str, field: str) -> tuple[Any, str]:
    """The file system and the path in it, after one request that proves the bucket may be listed.

    Raises RunError naming the field for credentials that are missing or wrong, and for a missing bucket;
    ConnectionError for an endpoint that does not answer.
    """
    with s3_errors(url, field, "list"):
        fs, path = quick_filesystem(url)
        bucket, _, prefix = path.partition("/")
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        return patient_filesystem(url)


@contextlib.contextmanager
def s3_errors(url: str, field: str, what: str = "read") -> Iterator[None]:
    """Turn what S3 refuses into a RunError that says what to do; `what` is what was tried."""
    from botocore.exceptions import (
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    from tasks.s3_patience import is_transient

    bucket = url.removeprefix("s3://").split("/")[0]
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound, CredentialRetrievalError):
        raise RunError(f"{field}: {url} needs credentials, and there are none: set {_SEE}") from None
    except ParamValidationError:
        raise RunError(f"{field}: {url}: {bucket!r} is no name of a bucket") from None
    except FileNotFoundError:
        raise RunError(
            f"{field}: there is no bucket {bucket!r} for {url}: check the name and AWS_ENDPOINT_URL"
        ) from None
    except PermissionError as error:
        raise refused(error, url, field, what) from None
    except BotoCoreError as error:
        if not is_transient(error):
            raise RunError(f"{field}: {url}: {' '.join(str(error).split())}") from None
        raise ConnectionError(
            f"{field}: S3 cannot be reached for {url} ({type(error).__name__}): check the network and AWS_ENDPOINT_URL"
        ) from None
    except ValueError as error:
        if "endpoint" not in str(error):
            raise
        raise RunError(f"{field}: {url}: AWS_ENDPOINT_URL is no URL: {error}") from None


def refused(error: PermissionError, url: str, field: str, what: str = "read") -> RunError:
    """What to tell: whether the keys are wrong, or right but without the right to do that."""
    if _code(error) in _WRONG_KEYS:
        return RunError(f"{field}: the credentials are refused for {url}: check {_SEE}")
    return RunError(f"{field}: the credentials may not {what} {url}: check their rights")


def _code(error: BaseException) -> str:
    answer: dict[str, Any] = getattr(error.__cause__, "response", {})
    return str(answer.get("Error", {}).get("Code", ""))
