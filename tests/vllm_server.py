"""A real vLLM server, and a proxy before it that records, refuses, and dies when told to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.ports import free_port

START_SECONDS = 900
Answer = tuple[int, dict[str, str], dict[str, Any]]


@contextlib.contextmanager
def vllm_server(model: Path, log_path: Path, *arguments: str) -> Iterator[str]:
    """The base URL of vLLM's OpenAI server with a model; it ends with the block."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32"),
        *("--host", "127.0.0.1", "--port", str(port), "--enforce-eager", *arguments),
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", **os.environ,
    }  # fmt: skip
    with log_path.open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/health", server, log_path)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Proxy:
    """Passes requests on to a server. `bodies` and `headers` are what came in for completions, in order.

    `answer` may give an answer of its own, (status, headers, body), instead; `most` requests are let through at once,
    others answered with 429. `served_at_once` is the most that were.
    """

    def __init__(self, target: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], Answer | None] = lambda body: None
        self.most: int | None = None
        self.refused = 0
        self.served = 0
        self.served_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._target = target.removeprefix("http://").removesuffix("/v1")
        self._sockets: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self) -> None:
        """As a server's machine that is switched off: connections break, and nobody listens any more."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer to one request."""
        if not path.endswith("completions"):
            return self._pass_on(method, path, headers, body)
        parsed = json.loads(body)
        with self._lock:
            self.bodies.append(parsed)
            self.headers.append(headers)
            own = self.answer(parsed)
            if own is None and self.most is not None and self._now >= self.most:
                own = 429, {"Retry-After": "0.1"}, {"error": {"message": "too many requests"}}
            if own is not None:
                self.refused += own[0] >= 400
                return own[0], own[1], json.dumps(own[2]).encode()
            self._now += 1
            self.served_at_once = max(self.served_at_once, self._now)
        try:
            return self._pass_on(method, path, headers, body)
        finally:
            with self._lock:
                self._now -= 1
                self.served += 1

    def _pass_on(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self._target)
        try:
            connection.request(method, path, body, {"Content-Type": headers.get("content-type", "application/json")})
            response = connection.getresponse()
            return response.status, {}, response.read()
        finally:
            connection.close()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            proxy._sockets.add(self.connection)

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                status, extra, answer = proxy.handle(self.command, self.path, headers, body)
            except (OSError, http.client.HTTPException):
                status, extra, answer = 502, {}, b"{}"
            self.send_response(status)
            for name, value in {**extra, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            return

    return Handler


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended:\n{log_path.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"the server is not ready:\n{log_path.read_text()[-3000:]}")
