"""download_model: the model as a local folder, whole, and known by its commit or its files' hash."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.config import ModelConfig
from tasks.downloads.fetch import fetch_model
from tasks.records import ModelManifest
from tasks.retries import retried


@task(
    name="download_model",
    tags=["download"],
    description="Get the model: a local folder is checked, a hub model downloaded at a pinned commit, S3 mirrored.",
    cache_policy=NO_CACHE,
    **retried(3, 10.0),
)
def download_model(model: ModelConfig, dummy_weights: bool = False) -> ModelManifest:
    """See `fetch_model`."""
    return fetch_model(model, dummy_weights)
