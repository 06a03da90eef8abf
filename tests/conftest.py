"""Shared by all tests: a Prefect server of their own, small models, and runs of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import models
from tests.ports import free_port
from tests.ray_cluster import TestCluster

ROOT = Path(__file__).parents[1]
RunFlow = Callable[..., "subprocess.CompletedProcess[str]"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-on-ray", action="store_true", help="run the pools' whole suite on Ray too (minutes)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run real engines first: they take longest, and none should be left for the end."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def prefect_api(prefect_home: Path) -> Iterator[str]:
    """The URL of a real Prefect server."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "PREFECT_HOME": str(prefect_home), "PREFECT_SERVER_UI_ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/api"
    try:
        _wait_for(f"{url}/health", server)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="session")
def flow_environment(prefect_api: str, prefect_home: Path) -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(prefect_home)}


@pytest.fixture(scope="session")
def run_flow(flow_environment: dict[str, str]) -> RunFlow:
    """Run `python flows/generate.py` with arguments, or on fake engines; returns its exit status and output."""

    def run(
        *arguments: str, timeout: float = 300, environment: dict[str, str] | None = None, fake: bool = False
    ) -> subprocess.CompletedProcess[str]:
        program = ["-m", "tests.fake_flow"] if fake else [str(ROOT / "flows/generate.py")]
        command = [sys.executable, *program, *arguments]
        given = {**flow_environment, **(environment or {})}
        return subprocess.run(
            command, env=given, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
        )

    return run


@pytest.fixture(scope="session")
def tiny_qwen3() -> Path:
    return models.cached(models.tiny_qwen3)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video: 3 s, 30 frames of 160 x 120, a bar that moves."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(30):
            pixels = np.full((120, 160, 3), 40, np.uint8)
            pixels[:, number * 5 : number * 5 + 10] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[TestCluster]:
    """A Ray cluster of three nodes, with room for two, one and one engine."""
    cluster = TestCluster([2, 1, 1])
    try:
        yield cluster
    finally:
        cluster.close()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, "the Prefect server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(url)
