"""A small hub on loopback that serves one dataset by the requests that huggingface_hub's filesystem makes."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DATASET = "org/questions"
COMMIT = "c" * 40


@contextmanager
def running_dataset_hub(folder: Path) -> Iterator[str]:
    """Serve the folder's files as the dataset DATASET; yields the endpoint. `org/gated` answers 403."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"folder": folder}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/datasets/org/gated"):
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif not path.startswith((f"/api/datasets/{DATASET}", f"/datasets/{DATASET}")):
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif found := re.search("/tree/[^/]+/?(.*)", path):
            self._json([self._entry(file) for file in self._below(found[1])])
        elif "/paths-info/" in path:
            names = [self.folder / name for name in json.loads(body)["paths"]]
            self._json([self._entry(name) for name in names if name.exists()])
        elif found := re.search("/resolve/[^/]+/(.+)", path):
            self._content((self.folder / found[1]).read_bytes())
        else:
            self._json({"id": DATASET, "sha": COMMIT, "siblings": [], "private": False, "tags": [], "downloads": 0})

    def _below(self, inside: str) -> list[Path]:
        return sorted((self.folder / inside).rglob("*" if "recursive=true" in self.path.lower() else "[!.]*"))

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "d" * 40, "size": 0}
        content = path.read_bytes()
        return {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def _content(self, data: bytes) -> None:
        found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            self._send(200, data)
            return
        start, end = int(found[1]), int(found[2] or len(data) - 1)
        self._send(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
