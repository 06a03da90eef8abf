"""A vLLM server on loopback for sides that talk to an endpoint, and what it made for each of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.engines.lifeline import Keeper
from tests.benchmarks.harness import Figures
from tests.benchmarks.workloads import Workload
from tests.ports import free_port

START_SECONDS = 600
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Server:
    """`url` has no `/v1`."""

    url: str

    @contextmanager
    def watched(self) -> Iterator[Figures]:
        """Fills in `tokens` made in the block, `seconds` from its first requests to its last token,
        and `command`: of all of it."""
        taken: Figures = {}
        ended, seen = threading.Event(), [(time.perf_counter(), *self.look())]

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                with suppress(OSError):
                    seen.append((time.perf_counter(), *self.look()))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield taken
        finally:
            ended.set()
            thread.join()
        seen.append((time.perf_counter(), *self.look()))
        first, last = seen[0][1], seen[-1][1]
        if last == first:
            raise RuntimeError("it asked the server for nothing")
        began = min(at for at, _, requests in seen if requests > 1)  # one alone is a client's trial
        done = min(at for at, tokens, _ in seen if tokens == last)
        taken |= {"tokens": last - first, "seconds": done - began, "command": seen[-1][0] - seen[0][0]}

    def look(self) -> tuple[int, int]:
        """Tokens generated since the server's start, and requests that it has now."""
        metrics = _get(f"{self.url}/metrics")
        return _sum(metrics, "generation_tokens_total"), _sum(metrics, "num_requests_(?:running|waiting)")


def _sum(metrics: str, name: str) -> int:
    return int(sum(float(n) for n in re.findall(rf"^vllm:{name}(?:\{{\S*)? (\S+)$", metrics, re.MULTILINE)))


@contextmanager
def running_server(model: str, workload: Workload, log: Path) -> Iterator[Server]:
    """vLLM's own server for the workload, warm: it has answered once."""
    port = free_port()
    flags = {"--model": model, "--host": "127.0.0.1", "--port": port}
    flags |= {f"--{name.replace('_', '-')}": value for name, value in workload.engine.items()}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += [str(word) for flag in flags.items() for word in flag]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        keeper = Keeper()  # it ends the server where this process is killed
        keeper.watch(process.pid)
        try:
            server = Server(f"http://127.0.0.1:{port}")
            _wait(server, process, log)
            _warm(server, model)
            yield server
        finally:
            _end(process)
            keeper.forget(process.pid)
            keeper.close()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the vLLM server ended:\n{log.read_text()[-2000:]}")
        with suppress(OSError):
            _get(f"{server.url}/health")
            return
        time.sleep(0.5)
    raise TimeoutError(f"the vLLM server was not ready after {START_SECONDS} s")


def _warm(server: Server, model: str) -> None:
    body = f'{{"model": "{model}", "prompt": "Hello", "max_tokens": 16, "n": 8}}'.encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/completions", body, headers)).read()


def _end(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())
