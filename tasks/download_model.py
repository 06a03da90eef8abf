"""download_model: the model as a local folder, whole, and known by its commit or its files' hash."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.config import EngineConfig, ModelConfig
from tasks.downloads.fetch import fetch_model
from tasks.engines.served_model import served_model
from tasks.records import ModelManifest
from tasks.retries import retried


@task(
    name="download_model",
    task_run_name="download_model",
    tags=["download"],
    description="Get the model: a local folder is checked, a hub model downloaded at a pinned commit, S3 mirrored. "
    "Where servers have it, they are asked which it is.",
    cache_policy=NO_CACHE,
    **retried(3, 10.0),
)
def download_model(model: ModelConfig, engine: EngineConfig | None = None) -> ModelManifest:
    """See `fetch_model` and, for `engine.kind: openai`, `served_model`."""
    if engine is not None and engine.kind == "openai":
        return served_model(model.source, engine)
    return fetch_model(model, engine is not None and engine.extra.get("load_format") == "dummy")
