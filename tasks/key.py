"""The key of a run's results: a hash of everything that the text of a sample depends on, and of nothing else."""

from __future__ import annotations

import hashlib

import orjson

from tasks.config import GenerateConfig

_VERSION = 2
"""Raised when our own code makes other rows of the same settings."""

_ENGINE_FIELDS = {"kind", "dtype", "quantization", "max_model_len", "yarn", "extra"}
_DATASET_FIELDS = {"messages_field", "prompt_field", "label_field", "images_field", "videos_field", "id_field"}
_NO_TEXT = {"media_roots", "allow_remote_media"}


def results_key(config: GenerateConfig, model_identity: str) -> str:
    """16 hex digits. Replicas, batch sizes, memory, retries, paths and output format do not enter it.

    A record's own content is not part of it: it is in each shard's hash.
    """
    settings = {
        "version": _VERSION,
        "model": model_identity,
        "dataset": config.dataset.model_dump(include=_DATASET_FIELDS),
        "prompt": config.prompt.model_dump(exclude=_NO_TEXT),
        "sampling": config.sampling.model_dump(),
        "engine": config.engine.model_dump(include=_ENGINE_FIELDS),
        "keep_fields": config.output.keep_fields,
    }
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
