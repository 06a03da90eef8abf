"""Whether an s3:// folder can be used at all, told in one line: credentials, bucket, endpoint.

Credentials come by s3fs's usual ways (AWS_* variables, ~/.aws, the machine's role) and are never read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import fsspec

from tasks.errors import RunError

_SEE = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def open_s3(url: str, field: str) -> tuple[Any, str]:
    """The file system and the path in it, after one request that proves the bucket may be listed.

    Raises RunError naming the field for credentials that are missing or wrong, and for a missing bucket;
    ConnectionError for an endpoint that does not answer.
    """
    with s3_errors(url, field):
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        bucket, _, prefix = str(path).partition("/")
        fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return fs, str(path)


@contextlib.contextmanager
def s3_errors(url: str, field: str) -> Iterator[None]:
    """Turn what S3 refuses into a RunError that says what to do."""
    from botocore.exceptions import (
        ConnectionError as NotReached,
    )
    from botocore.exceptions import (
        CredentialRetrievalError,
        HTTPClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
        ProfileNotFound,
    )

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
    except PermissionError:
        raise RunError(f"{field}: the credentials are refused for {url}: check {_SEE}, and their rights") from None
    except (NotReached, HTTPClientError) as error:
        raise ConnectionError(
            f"{field}: S3 cannot be reached for {url} ({type(error).__name__}): check the network and AWS_ENDPOINT_URL"
        ) from None
