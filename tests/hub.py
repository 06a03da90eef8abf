"""A small model hub on loopback: the requests that downloaders make, and what can go wrong with the answers.

Large files (`LFS_BYTES` and more) are sent, like the real hub's, by a redirect to another host name with a signed URL.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 10_000
TOKEN = "hf_secretsecretsecret"


@dataclass
class Model:
    """A model's files, and how the hub behaves with them. `revisions` name commits, `main` among them."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    commit: str = ""
    revisions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        content = b"".join(name.encode() + data for name, data in sorted(self.files.items()))
        self.commit = self.commit or hashlib.sha1(content).hexdigest()
        self.revisions = {"main": self.commit, **self.revisions}
        self.oids = {name: _oid(data) for name, data in self.files.items()}


@dataclass
class Request:
    method: str
    path: str
    host: str
    token: str | None
    range: str | None


class Hub:
    """The server's models, the requests it got, and its faults.

    `damaged[name]` answers (counted down) have a flipped byte, `cut[name]` end in the middle; `delay` seconds pass
    after each 64 KiB; `ranges=False` ignores Range; `sent[name]` counts the bytes sent of a file.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.requests: list[Request] = []
        self.damaged: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.status: int | None = None
        self.delay = 0.0
        self.ranges = True
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self, name: str) -> int:
        """GET requests for a file's content."""
        return sum(r.method == "GET" and r.path.endswith(f"/{name}") and "/cdn/" not in r.path for r in self.requests)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


def tiny_model(weights_bytes: int = 300_000, shards: int = 2, seed: int = 0) -> Model:
    """A model with the files of a real one, duplicates of its weights among them; the contents are noise."""
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    index = {"metadata": {}, "weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}
    return Model(
        {
            "config.json": b'{"model_type": "qwen3"}',
            "tokenizer.json": noise(20_000, seed + 1),
            "tokenizer_config.json": b'{"a": 1}',
            "chat_template.jinja": b"{{ messages }}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            **{name: noise(weights_bytes, seed + 10 + i) for i, name in enumerate(names)},
            "consolidated.safetensors": noise(50_000, seed + 2),
            "original/consolidated.00.pth": noise(50_000, seed + 3),
            "original/model.safetensors": noise(50_000, seed + 4),
            "onnx/model.onnx": noise(50_000, seed + 5),
            "pytorch_model.bin": noise(50_000, seed + 6),
            "modeling_own.py": b"print('remote code')",
            "README.md": b"# A model",
        }
    )


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not repeat."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def _oid(data: bytes) -> str:
    if len(data) >= LFS_BYTES:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        with self.hub.lock:
            self.hub.requests.append(
                Request(self.command, path, self.headers["Host"], authorization, self.headers.get("Range"))
            )
        if self.hub.status is not None:
            return self._send(self.hub.status, b"")
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, *match.groups())
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _model(self, name: str, content: bool = False) -> Model | None:
        """The model, if it is there for this request; else the refusal is sent."""
        model = self.hub.models.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if model is None or (model.private and not allowed):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if model.gated and content and not allowed:
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
            return None
        return model

    def _commit(self, model: Model, revision: str) -> str | None:
        if revision == model.commit:
            return revision
        if revision not in model.revisions:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return model.revisions.get(revision)

    def _info(self, name: str, revision: str | None = None) -> None:
        model = self._model(name)
        commit = model and self._commit(model, revision or "main")
        if model is None or commit is None:
            return
        siblings = [{"rfilename": file} for file in model.files]
        self._json({"id": name, "sha": commit, "siblings": siblings, "gated": "auto" if model.gated else False})

    def _tree(self, name: str, revision: str) -> None:
        model = self._model(name)
        if model is None or self._commit(model, revision) is None:
            return
        rows: list[dict[str, Any]] = [{"type": "directory", "path": "original", "oid": "0" * 40, "size": 0}]
        for file, data in model.files.items():
            row: dict[str, Any] = {"type": "file", "path": file, "size": len(data), "oid": model.oids[file]}
            if len(data) >= LFS_BYTES:
                lfs = {"oid": model.oids[file], "size": len(data), "pointerSize": 133}
                row |= {"oid": hashlib.sha1(data).hexdigest(), "lfs": lfs}
            rows.append(row)
        self._json(rows)

    def _resolve(self, name: str, revision: str, file: str) -> None:
        model = self._model(name, content=True)
        commit = model and self._commit(model, revision)
        if model is None or commit is None:
            return None
        if file not in model.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = model.files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{model.oids[file]}"'}
        if len(data) < LFS_BYTES:
            return self._content(file, data, headers)
        headers |= {"X-Linked-ETag": f'"{model.oids[file]}"', "X-Linked-Size": str(len(data))}
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{name}/{file}?signature=signedsigned"
        return self._send(302, b"", headers)

    def _cdn(self, name: str, file: str) -> None:
        if "signature=signedsigned" not in self.path:
            return self._send(403, b"")
        return self._content(file, self.hub.models[name].files[file], {})

    def _content(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        start, end, status = 0, len(data), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.hub.ranges:
            start, end, status = int(wanted[1]), min(int(wanted[2] or end) + 1, end) if wanted[2] else end, 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        self.send_response(status)
        for key, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._body(file, data, start, end)

    def _body(self, file: str, data: bytes, start: int, end: int) -> None:
        with self.hub.lock:
            damage, cut = self.hub.damaged[file] > 0, self.hub.cut[file] > 0
            self.hub.damaged[file] -= damage
            self.hub.cut[file] -= cut
        if cut:
            end = start + (end - start) // 2
            self.close_connection = True
        try:
            for at in range(start, end, 65536):
                block = bytearray(memoryview(data)[at : min(at + 65536, end)])
                if damage and at == start:
                    block[len(block) // 2] ^= 1
                self.wfile.write(block)
                with self.hub.lock:
                    self.hub.sent[file] += len(block)
                if self.hub.delay:
                    time.sleep(self.hub.delay)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


_ID = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, Any]] = [
    (rf"/api/models/{_ID}", _Handler._info),
    (rf"/api/models/{_ID}/revision/(.+)", _Handler._info),
    (rf"/api/models/{_ID}/tree/([^/]+)", _Handler._tree),
    (rf"/{_ID}/resolve/([^/]+)/(.+)", _Handler._resolve),
    (rf"/cdn/{_ID}/(.+)", _Handler._cdn),
]
