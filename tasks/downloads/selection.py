"""Which of a model's files are needed, and which of them a folder lacks."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from pathlib import Path

import orjson

from tasks.config import ModelConfig
from tasks.errors import RunError

_WEIGHTS = (".safetensors", ".bin", ".pt")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
_TRAINING = ("training_", "optimizer", "scheduler", "scaler", "rng_state")


def needed_files(names: Iterable[str], config: ModelConfig, dummy_weights: bool = False) -> list[str]:
    """The files, by name relative to the model's folder, sorted: those that vLLM reads, or those the patterns ask for.

    `include` replaces our choice, `exclude` takes files from it; as with hfd, `*` also matches `/`.
    """
    names = list(names)
    chosen = _matching(names, config.include) if config.include else _read_by_vllm(names, config.trust_remote_code)
    left_out = set(_matching(chosen, config.exclude))
    return sorted(name for name in chosen if name not in left_out and not (dummy_weights and is_weights(name)))


def is_weights(name: str) -> bool:
    """Whether the file holds weights, by its name."""
    return name.endswith(_WEIGHTS)


def require_names(names: Collection[str], source: str, dummy_weights: bool) -> None:
    """Raise RunError where files of these names cannot be a model; without weights it will do only for dummies."""
    if "config.json" not in names:
        raise RunError(f"model.source: {source} has no config.json: it is no model, or an incomplete one")
    if not dummy_weights and not any(is_weights(name) for name in names):
        raise RunError(f"model.source: {source} has no weights (*.safetensors): it is an incomplete model")


def require_complete(folder: Path, source: str, dummy_weights: bool) -> None:
    """Raise RunError naming what a model's folder lacks: config, weights, or shards that its index names."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    require_names(names, source, dummy_weights)
    if dummy_weights:
        return
    for index in _INDEXES:
        if index in names and (missing := sorted(_indexed(folder / index) - names)):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise RunError(f"model.source: {source} is incomplete: {missing[0]}{more}, named in {index}, missing")


def _read_by_vllm(names: list[str], trust_remote_code: bool) -> list[str]:
    # Subfolders hold other formats (original/, metal/, onnx/); the exceptions are extra chat templates and code.
    top = [n for n in names if "/" not in n and not n.startswith(".")]
    small = [n for n in top if n.endswith(_SMALL) and not n.endswith(".py")]
    small += [n for n in names if n.startswith("additional_chat_templates/") and n.endswith(".jinja")]
    code = [n for n in names if n.endswith(".py") and not n.startswith(".")] if trust_remote_code else []
    return [*small, *code, *_one_format(top)]


def _one_format(top: list[str]) -> list[str]:
    safetensors = [n for n in top if n.endswith(".safetensors")]
    own = [n for n in safetensors if not n.startswith("consolidated")]
    return own or safetensors or [n for n in top if is_weights(n) and not n.startswith(_TRAINING)]


def _matching(names: Iterable[str], patterns: list[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _indexed(index: Path) -> set[str]:
    try:
        return set(orjson.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"model.source: {index} is damaged ({error}): fetch it again") from None
