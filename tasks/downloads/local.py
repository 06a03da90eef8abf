"""A model in a local folder: whether it is whole, and the hash that its results are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import orjson

from tasks.errors import RunError
from tasks.storage import COPY_BYTES

WEIGHTS = (".safetensors", ".bin", ".pt")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
_LARGE_BYTES = 16 << 20


def needed_files(names: Iterable[str], trust_remote_code: bool) -> list[str]:
    """The files of a model that vLLM reads: configs, tokenizer, templates, and one format of the weights.

    Files in subfolders (other formats: `original/`, `metal/`, `onnx/`) and `consolidated*` copies are left out.
    """
    top = [name for name in names if "/" not in name and not name.startswith(".")]
    small = [n for n in top if n.endswith(_SMALL) and (trust_remote_code or not n.endswith(".py"))]
    safetensors = [n for n in top if n.endswith(".safetensors") and not n.startswith("consolidated")]
    weights = safetensors or [
        n for n in top if n.endswith(WEIGHTS[1:]) and not n.startswith(("training_", "optimizer"))
    ]
    return sorted({*small, *weights})


def require_complete(folder: Path, source: str, dummy_weights: bool) -> None:
    """Raise RunError naming what a model's folder lacks. Without weights it will do only for `load_format: dummy`."""
    if not folder.is_dir():
        raise RunError(f"model.source: {source} is not a folder")
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise RunError(f"model.source: {source} has no config.json: it is no model's folder, or an incomplete one")
    for index in INDEXES:
        if index in names and not dummy_weights:
            listed = set(orjson.loads((folder / index).read_bytes())["weight_map"].values())
            if missing := sorted(listed - names):
                raise RunError(
                    f"model.source: {source} is incomplete: {len(missing)} files are missing: {missing[0]} …"
                )
    if not dummy_weights and not any(name.endswith(WEIGHTS) for name in names):
        raise RunError(f"model.source: {source} has no weights (*.safetensors)")


def folder_identity(folder: Path, trust_remote_code: bool) -> str:
    """Hash over the names and contents of the model's files; where the folder lies does not matter.

    Large files' hashes are remembered by path, size and time of change, so that a rerun does not read them again.
    """
    cache = _HashCache()
    digest = hashlib.sha256()
    for name in needed_files((path.name for path in folder.iterdir() if path.is_file()), trust_remote_code):
        digest.update(f"{name}\0{cache.sha256(folder / name)}\n".encode())
    cache.save()
    return digest.hexdigest()[:40]


class _HashCache:
    def __init__(self) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = Path(home, "datagen-flow", "hashes.json")
        try:
            self._known: dict[str, str] = orjson.loads(self._path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            self._known = {}

    def sha256(self, path: Path) -> str:
        stat = path.stat()
        if stat.st_size < _LARGE_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        place = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if place not in self._known:
            self._known[place] = _sha256(path)
        return self._known[place]

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        temporary.write_bytes(orjson.dumps(self._known))
        temporary.replace(self._path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()
