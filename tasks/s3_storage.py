"""A folder of an S3 bucket. Nothing is kept on this machine's disk; files appear when they are whole, as objects do.

Credentials come from s3fs's usual places (AWS_* variables, ~/.aws, the machine's role), never from us. A store that is
away for some minutes is waited for; what it refuses, and a longer absence, is an OSError.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import IO, cast

from tasks.s3_patience import is_transient
from tasks.s3_upload import S3Upload
from tasks.storage import COPY_BYTES, FROM_START_TO_END, filesystem

_OUR_UPLOADS = ("shards/", "data.", "errors.", "manifest.", "report.")
"""What the names of a run's files begin with."""


class S3Storage:
    """The `Storage` of an `s3://bucket/folder`."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._fs, base = filesystem(self.root)
        self.bucket, _, self.prefix = base.partition("/")

    def read(self, name: str) -> bytes:
        with self._told(name):
            return cast(bytes, self._fs.cat_file(self._path(name)))

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        options = {"block_size": COPY_BYTES, **FROM_START_TO_END}
        with _reached(self.root), self._fs.open(self._path(name), "rb", **options) as file:
            yield cast("IO[bytes]", file)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[IO[bytes]]:
        upload = S3Upload(self._fs, self.bucket, self.key(name))
        try:
            with _reached(self.root):
                yield cast("IO[bytes]", upload)
                upload.commit()
        except BaseException:
            upload.discard()
            raise

    def append(self, target: IO[bytes], name: str, size: int) -> bool:
        """Of a large object the bytes never come here: S3 copies them into the upload that `target` is."""
        if not isinstance(target, S3Upload) or size < target.smallest_copy:
            return False
        with self._told(name):
            head = self._fs.call_s3("head_object", Bucket=self.bucket, Key=self.key(name))
            if head["ContentLength"] != size:
                return False
            target.append(self.key(name), size, head["ETag"])
        return True

    def names(self, folder: str) -> list[str]:
        try:
            with self._told(folder):
                entries = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rsplit("/", 1)[-1] for e in entries if e["type"] == "file")

    def size(self, name: str) -> int | None:
        try:
            with self._told(name):
                return cast(int, self._fs.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def etag(self, name: str) -> str | None:
        try:
            with self._told(name):
                return str(self._fs.call_s3("head_object", Bucket=self.bucket, Key=self.key(name))["ETag"])
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._told(name):
            self._fs.rm(self._path(name), recursive=True)

    def drop_unfinished_uploads(self) -> None:
        """Uploads that a killed run left: nobody sees them, but they are paid for. Call it with the folder locked.

        Those of other names are others', such as of a run in a folder below this one.
        """
        where = {"Bucket": self.bucket}
        with contextlib.suppress(OSError):  # the right to list them may be lacking
            for prefix in _OUR_UPLOADS:
                found = self._fs.call_s3("list_multipart_uploads", **where, Prefix=self.key(prefix))
                for upload in found.get("Uploads", ()):
                    self._fs.call_s3("abort_multipart_upload", **where, Key=upload["Key"], UploadId=upload["UploadId"])

    def key(self, name: str) -> str:
        """The object's key."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def _path(self, name: str) -> str:
        return f"{self.bucket}/{self.key(name)}".rstrip("/")

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """botocore's errors as OSErrors that name the object."""
        where = f"{self.root}/{name}".rstrip("/")
        try:
            with _reached(where):
                yield
        except (FileNotFoundError, ConnectionError):
            raise
        except PermissionError as error:
            raise PermissionError(f"{where}: access denied ({_first_line(error)})") from error
        except OSError as error:
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise ConnectionError(f"{where}: S3 fails ({_first_line(error)})") from error
            raise OSError(error.errno or errno.EIO, f"{where}: {_first_line(error)}") from error


@contextlib.contextmanager
def _reached(where: str) -> Iterator[None]:
    """A ConnectionError where S3 does not answer, which is none of Python's own errors in botocore."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise ConnectionError(f"{where}: S3 does not answer ({type(error).__name__})") from error


def _first_line(error: OSError) -> str:
    return str(error.strerror or error).split("\n")[0]
