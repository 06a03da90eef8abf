"""A model in a local folder: used where it lies, and known by the hash of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.config import ModelConfig
from tasks.downloads.hashes import HashCache
from tasks.downloads.selection import needed_files, require_complete
from tasks.errors import RunError
from tasks.records import ModelManifest


def use_folder(config: ModelConfig, dummy_weights: bool) -> ModelManifest:
    """The folder's manifest. Raises RunError naming what it lacks."""
    folder = Path(config.source).expanduser().absolute()
    if not folder.is_dir():
        raise RunError(f"model.source: {config.source} is not a folder")
    require_complete(folder, config.source, dummy_weights)
    identity = folder_identity(folder, config, dummy_weights)
    return ModelManifest(source=config.source, path=str(folder), identity=identity)


def folder_identity(
    folder: Path, config: ModelConfig, dummy_weights: bool = False, known: HashCache | None = None
) -> str:
    """Hash over the names and contents of the files that vLLM reads; where the folder lies does not matter."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    needed = needed_files(names, config.model_copy(update={"include": [], "exclude": []}), dummy_weights)
    hashes = (known or HashCache()).sha256_all(folder / name for name in needed)
    lines = "".join(f"{name}\0{digest}\n" for name, digest in zip(needed, hashes, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]
