"""One object on its way to S3: written in parts, or put together by S3 itself from objects that are there.

The object appears when the last request is through, and not at all otherwise. In memory are a few parts, however large
the object becomes.
"""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

SMALLEST_PART = 5 << 20
"""S3 takes no smaller part, but for the last."""
SMALLEST_COPY = 16 << 20
"""Smaller objects are cheaper to send again than to copy, and some could not be a part."""
PART_BYTES = 8 << 20
MOST_COPIED = 256 << 20
"""Bytes that S3 is asked to copy by one request: what it does in seconds."""
_PARTS_OF_A_SIZE = 1500
"""Parts, after which they become twice as large: S3 takes 10,000 a file, which so may have a terabyte."""
_AT_ONCE = 4
_BYTES_AT_ONCE = 64 << 20


class S3Upload(io.RawIOBase):
    """A file to write to, from its start to its end; then `commit` or `discard` it."""

    def __init__(self, fs: Any, bucket: str, key: str) -> None:
        self._fs = fs
        self._place = {"Bucket": bucket, "Key": key}
        self._upload: str | None = None
        self._buffer = bytearray()
        self._position = 0
        self._parts: list[str] = []
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="s3-upload")
        self._pending: deque[Future[None]] = deque()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        with memoryview(data) as view, view.cast("B") as content:
            self._buffer += content
            self._position += len(content)
            while len(self._buffer) >= (size := self._part_bytes):
                self._send(bytes(memoryview(self._buffer)[:size]))
                del self._buffer[:size]
            return len(content)

    @property
    def smallest_copy(self) -> int:
        """Bytes of the smallest object that `append` takes: each is a part, of which there may not be too many."""
        return max(SMALLEST_COPY, self._part_bytes)

    def append(self, key: str, size: int, etag: str) -> None:
        """Add an object of the same bucket, of at least `smallest_copy` bytes, without fetching it.

        Raises OSError where it is not the one with this ETag any more.
        """
        source = {"CopySource": {"Bucket": self._place["Bucket"], "Key": key}, "CopySourceIfMatch": etag}
        start = 0
        if 0 < len(self._buffer) < SMALLEST_PART:
            start = SMALLEST_PART - len(self._buffer)
            self._buffer += self._fs.cat_file(f"{self._place['Bucket']}/{key}", start=0, end=start)
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()
        while start < size:
            end = start + MOST_COPIED if size - start - MOST_COPIED >= SMALLEST_PART else size
            self._copy(source | {"CopySourceRange": f"bytes={start}-{end - 1}"})
            start = end
        self._position += size

    def commit(self) -> None:
        """Let the object appear."""
        if self._upload is None:
            self._fs.call_s3("put_object", **self._place, Body=bytes(self._buffer))
        else:
            if self._buffer:
                self._send(bytes(self._buffer))
            self._wait(0)
            self._complete()
        self._threads.shutdown()

    def discard(self) -> None:
        """Drop what was sent. Never raises."""
        self._threads.shutdown(cancel_futures=True)
        if self._upload is not None:
            with contextlib.suppress(Exception):
                self._fs.call_s3("abort_multipart_upload", **self._place, UploadId=self._upload)

    @property
    def _part_bytes(self) -> int:
        return PART_BYTES << (len(self._parts) // _PARTS_OF_A_SIZE)

    def _complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._parts, 1)]
        try:
            self._fs.call_s3(
                "complete_multipart_upload", **self._place, UploadId=self._upload, MultipartUpload={"Parts": parts}
            )
        except FileNotFoundError:
            # The request was repeated, and it is the first one's answer that was lost: the upload is an object now.
            if self._fs.call_s3("head_object", **self._place)["ContentLength"] != self._position:
                raise

    def _send(self, body: bytes) -> None:
        self._submit(lambda where: str(self._fs.call_s3("upload_part", **where, Body=body)["ETag"]))

    def _copy(self, source: dict[str, Any]) -> None:
        def copy(where: dict[str, Any]) -> str:
            return str(self._fs.call_s3("upload_part_copy", **where, **source)["CopyPartResult"]["ETag"])

        self._submit(copy)

    def _submit(self, request: Callable[[dict[str, Any]], str]) -> None:
        """Have the next part made, beside others."""
        if self._upload is None:
            self._upload = str(self._fs.call_s3("create_multipart_upload", **self._place)["UploadId"])
        number = len(self._parts)
        self._parts.append("")

        def run() -> None:
            self._parts[number] = request({**self._place, "UploadId": self._upload, "PartNumber": number + 1})

        self._wait(min(_AT_ONCE, max(1, _BYTES_AT_ONCE // self._part_bytes)) - 1)
        self._pending.append(self._threads.submit(run))

    def _wait(self, left: int) -> None:
        """Until at most so many parts are under way. Raises what went wrong with one."""
        while len(self._pending) > left:
            self._pending.popleft().result()
