"""The Prefect server of a single run, for when none is configured.

It starts before Prefect is imported here, and so beside all other beginnings: its start is the longest part of a run's
first seconds. It runs in a process of its own by the command that Prefect would use, and the flow talks to it as to any
server: Prefect's own way would import the server's code here too, which takes as long again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tasks.engines.lifeline import Keeper

TRIES = 3
STOP_SECONDS = 5.0
NICENESS = 10
_ENVIRONMENT = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}

_server: OwnServer | None = None


def start_ahead() -> None:
    """Start the server now, if it looks as if one will be needed: `serving` decides."""
    global _server
    if _server is None and not os.environ.get("PREFECT_API_URL"):
        _server = OwnServer()


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """With no server configured, run the block under one of our own, whose logs are the run's files only."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOGGING_TO_API_ENABLED,
        get_current_settings,
        temporary_settings,
    )

    global _server
    configured = get_current_settings().api.url is not None  # a profile may name one
    try:
        if configured:
            yield
            return
        _server = _server or OwnServer()
        settings = {PREFECT_API_URL: _server.wait(), PREFECT_LOGGING_TO_API_ENABLED: False}
        with temporary_settings(settings):
            yield
    finally:
        if _server is not None:
            _server.close()
            _server = None


def is_own(url: str | None) -> bool:
    """Whether this is the server of this run alone, which nobody looks at."""
    return _server is not None and url == _server.url


class OwnServer:
    """A server process; it ends with `close`, and with this process however that ends."""

    def __init__(self) -> None:
        self._keeper = Keeper()
        self._start()

    @property
    def url(self) -> str:
        """Where its API is; nothing may answer there yet."""
        return f"http://127.0.0.1:{self._port}/api"

    def wait(self) -> str:
        """Its URL, once it answers. Raises RuntimeError where it does not."""
        seconds = float(os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180"))
        deadline, tries = time.monotonic() + seconds, 1
        while time.monotonic() < deadline:
            if self._process.poll() is not None:  # the port was taken meanwhile, perhaps
                if tries == TRIES:
                    break
                tries += 1
                self._start()
            if _answers(f"{self.url}/health"):
                _give_way(self._process.pid)
                return self.url
            time.sleep(0.05)
        raise RuntimeError(
            f"Prefect's server for this run did not start within {seconds:g} s (it ended with {self._process.poll()}); "
            "see PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or set PREFECT_API_URL to a server of yours"
        )

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._keeper.forget(self._process.pid)
        self._keeper.close()

    def _start(self) -> None:
        self._port = _free_port()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "--app-dir", _site_packages(), "--factory"),
                *("prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(self._port)),
                *("--log-level", "error", "--lifespan", "on"),
            ],
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for the flow, which has something to tell the server then
        )
        self._keeper.watch(self._process.pid)


def _give_way(pid: int) -> None:
    """Lower a process's priority. An engine on the CPU computes with all cores, in step: one that is taken from it for
    the bookkeeping of a shard stops all of them."""
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (http://127.0.0.1)
            return bool(answer.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _site_packages() -> str:
    """Where Prefect lies; it is not imported to find out."""
    found = importlib.util.find_spec("prefect")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parents[1])
