"""One run at a time in an output folder on S3."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tasks import s3_lock
from tasks.errors import RunError
from tasks.output_lock import output_lock
from tasks.s3_lock import S3Lock
from tests.seaweed import Seaweed, SeaweedServer, seaweed

__all__ = ["seaweed"]

HOLD = """
import sys
from tasks import s3_lock
s3_lock.BEAT_SECONDS = 0.2
if sys.argv[2] == "elsewhere":
    s3_lock._machine = lambda: "another machine"
from tasks.output_lock import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of seconds, looked at ten times a second."""
    monkeypatch.setattr(s3_lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(s3_lock, "LEASE_SECONDS", 4)
    monkeypatch.setattr(s3_lock, "_LOOK_SECONDS", 0.1)


def use(server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return f"s3://{server.bucket('locks')}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def folder(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    return use(seaweed, monkeypatch)


def hold(folder: str, where: str) -> subprocess.Popen[str]:
    """A run that holds the folder, in a process of its own."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def refused(folder: str, pid: int) -> None:
    with pytest.raises(RunError, match=rf"output\.path: {folder} is in use by another run that still lives \(.*{pid}"):
        S3Lock(folder).acquire()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_second_run_is_refused_while_the_first_lives_and_takes_over_after_it_died(
    folder: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    holder = hold(folder, where)
    refused(folder, holder.pid)
    holder.kill()
    holder.communicate()
    with caplog.at_level(logging.INFO, "datagen"), output_lock(folder):
        assert f"took over {folder} from a run that died (process {holder.pid}" in caplog.text
    assert ("watching whether it lives" in caplog.text) == (where == "elsewhere")


def test_it_is_free_after_a_run_that_ended(folder: str, seaweed: Seaweed) -> None:
    for _ in range(2):
        with output_lock(folder):
            refused(folder, os.getpid())
    holder = hold(folder, "elsewhere")
    holder.communicate()
    with output_lock(folder):
        pass
    assert not seaweed.filesystem().exists(f"{folder}/{s3_lock.LOCK}")


def contend(folder: str) -> list[S3Lock]:
    """Those of many at once that got it."""
    start = threading.Barrier(16)

    def acquire(_: int) -> S3Lock | None:
        lock = S3Lock(folder)
        start.wait()
        try:
            lock.acquire()
        except RunError:
            return None
        return lock

    with ThreadPoolExecutor(16) as threads:
        return [lock for lock in threads.map(acquire, range(16)) if lock is not None]


def test_of_many_at_once_one_gets_it(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (winner,) = contend(folder)
    winner.release()
    monkeypatch.setattr(s3_lock, "_machine", lambda: None)
    (winner,) = contend(folder)
    winner.release()


def test_of_many_at_once_one_takes_over(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = hold(folder, "elsewhere")
    holder.kill()
    holder.communicate()
    monkeypatch.setattr(s3_lock, "_machine", lambda: None)
    (winner,) = contend(folder)
    winner.release()


def test_a_run_that_was_taken_over_stops(folder: str) -> None:
    """As after a pause (a suspended machine) longer than the lease."""
    holder = hold(folder, "elsewhere")
    os.kill(holder.pid, signal.SIGSTOP)
    with output_lock(folder):
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(60) != 0
        refused(folder, os.getpid())
    holder.communicate()


def test_being_taken_over_is_told(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_lock, "BEAT_SECONDS", 0.1)

    def lose() -> None:
        s3_lock.quick_filesystem(folder)[0].pipe_file(f"{folder}/{s3_lock.LOCK}", b"{}")
        threading.Event().wait(60)

    with pytest.raises(RunError, match=rf"another run has taken {folder} over"), output_lock(folder):
        lose()


def test_a_lock_that_was_removed_by_hand_is_set_again(folder: str, seaweed: Seaweed) -> None:
    with output_lock(folder):
        seaweed.filesystem().rm_file(f"{folder}/{s3_lock.LOCK}")
        until(lambda: seaweed.filesystem().exists(f"{folder}/{s3_lock.LOCK}"))
        refused(folder, os.getpid())


def test_an_answer_that_was_lost_is_no_refusal(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs repeats a put whose answer did not come; the second one finds the first one's lock."""
    call = s3fs.S3FileSystem.call_s3

    def twice(self: Any, method: str, **fields: Any) -> Any:
        if method == "put_object":
            call(self, method, **fields)
        return call(self, method, **fields)

    lock = S3Lock(folder)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", twice)
    lock.acquire()
    time.sleep(1)
    assert not lock.lost
    lock.release()


def test_a_store_without_conditions_is_told(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = s3fs.S3FileSystem.call_s3

    def ignorant(self: Any, method: str, **fields: Any) -> Any:
        return call(self, method, **{name: value for name, value in fields.items() if not name.startswith("If")})

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", ignorant)
    with output_lock(folder):
        assert "ignores conditional puts" in caplog.text


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    with SeaweedServer() as server:
        yield server


def test_a_restart_of_the_server_loses_no_lock(own_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = use(own_server.access, monkeypatch)
    holder = hold(folder, "elsewhere")
    own_server.kill()
    time.sleep(4)  # longer than the lease
    own_server.start()
    refused(folder, holder.pid)
    holder.communicate()
    assert holder.returncode == 0


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
