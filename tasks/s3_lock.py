"""The lock of an output folder on S3: an object that one run creates, renews, and removes at its end.

Creating and taking over are conditional puts, so of many runs at once one wins. No clock is compared with another: a
run that finds the lock watches it, and takes it over when it was not renewed for LEASE_SECONDS of answered looks (at
once, where its holder was a process of this machine that is gone). A holder that was taken over stops.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.errors import RunError
from tasks.run_log import log
from tasks.s3_patience import quick_filesystem

LOCK = ".lock"
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Found:
    """A lock that is there; `etag` changes whenever it is renewed."""

    etag: str
    holder: dict[str, Any]


class S3Lock:
    """The lock of `s3://bucket/folder`. Its errors are S3's own, but for RunError where another run holds it."""

    def __init__(self, output_path: str) -> None:
        self.lost = False
        self._path = output_path
        self._fs, base = quick_filesystem(output_path)
        bucket, _, prefix = base.rstrip("/").partition("/")
        self._place = {"Bucket": bucket, "Key": f"{prefix}/{LOCK}".lstrip("/")}
        self._etag = ""
        self._beats = 0
        self._released = threading.Event()
        self._me = {
            "owner": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process_start": _process_start(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        }
        self._thread = threading.Thread(target=self._keep, name="output-lock", daemon=True)

    def acquire(self) -> None:
        """Hold the lock until `release`. Raises RunError while another run holds it."""
        while not self._put(IfNoneMatch="*"):
            found = self._find()
            if found is None:
                continue  # it has just been released
            if self._lives(found):
                raise RunError(f"output.path: {self._path} is in use by another run that still lives ({_words(found)})")
            if self._put(IfMatch=found.etag):
                log.warning("output.path: took over %s from a run that died (%s)", self._path, _words(found))
                break
        self._require_conditions()
        self._thread.start()

    def release(self) -> None:
        """Let others have it. Never raises: a lock that stays is found dead."""
        self._released.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(Exception):
                self._fs.call_s3("delete_object", **self._place, IfMatch=self._etag)

    def _keep(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                # Someone may have removed it by hand.
                held = self._put(IfMatch=self._etag) or (self._find() is None and self._put(IfNoneMatch="*"))
            except Exception as error:
                log.warning("output.path: the lock of %s cannot be renewed: %s", self._path, error)
                continue
            if not held:
                self.lost = True
                _stop_this_run()
                return

    def _put(self, **condition: str) -> bool:
        """Write the lock under a condition; False where S3 says that it does not hold."""
        self._beats += 1
        body = orjson.dumps({**self._me, "beats": self._beats})
        try:
            self._etag = str(self._fs.call_s3("put_object", **self._place, Body=body, **condition)["ETag"])
        except OSError as error:
            if not _is_refusal(error):
                raise
            # The answer to a put that succeeded may have been lost, and the put been repeated.
            found = self._find()
            if found is None or found.holder.get("owner") != self._me["owner"]:
                return False
            self._etag = found.etag
        return True

    def _find(self) -> _Found | None:
        try:
            head = self._fs.call_s3("head_object", **self._place)
            holder = orjson.loads(self._fs.cat_file("/".join(self._place.values())))
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            holder = {}
        return _Found(str(head["ETag"]), holder if isinstance(holder, dict) else {})

    def _lives(self, found: _Found) -> bool:
        holder = found.holder
        if holder.get("machine") == self._me["machine"] is not None:
            return bool(_process_start(holder["pid"]) == holder["process_start"])
        log.info("output.path: %s is locked by another run (%s): watching whether it lives", self._path, _words(found))
        for _ in range(round(LEASE_SECONDS / _LOOK_SECONDS)):
            time.sleep(_LOOK_SECONDS)
            now = self._find()
            if now is None or now.etag != found.etag:
                return now is not None
        return False

    def _require_conditions(self) -> None:
        """A store that takes a second lock knows no conditions: say so, for it locks nothing out."""
        etag = self._etag
        with contextlib.suppress(OSError):
            answer = self._fs.call_s3("put_object", **self._place, Body=orjson.dumps(self._me), IfNoneMatch="*")
            etag = str(answer["ETag"])
            log.warning(
                "output.path: the store of %s ignores conditional puts: a second run at the same time would not be "
                "noticed",
                self._path,
            )
        self._etag = etag


def _stop_this_run() -> None:
    """As Ctrl-C does; a run that was started in the background of a script ignores SIGINT, and heeds SIGTERM."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if ignored else signal.SIGINT)


def _is_refusal(error: OSError) -> bool:
    """412 and 409 are the condition's; so is 404, but for a bucket that is not there."""
    answer = getattr(error.__cause__, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    gone = status == 404 and answer["Error"].get("Code") != "NoSuchBucket"
    return isinstance(error, FileExistsError) or status in (409, 412) or gone


def _words(found: _Found) -> str:
    holder = found.holder
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _machine() -> str | None:
    """The same for all processes that see each other's ids, and for no others; None where nothing tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """When the process was started, in the kernel's ticks; None when it is gone. A zombie is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
