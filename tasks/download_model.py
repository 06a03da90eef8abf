"""download_model: the model as a local folder, whole, and known by its commit or its files' hash."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.config import ModelConfig
from tasks.downloads.hub import download_from_hub
from tasks.downloads.local import use_folder
from tasks.downloads.s3 import mirror_from_s3
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


def fetch_model(model: ModelConfig, dummy_weights: bool = False) -> ModelManifest:
    """The model's manifest; `dummy_weights` allows a folder that has none (vLLM's `load_format: dummy`).

    Raises RunError for a model that is missing, gated or incomplete, and OSError for a network that fails.
    """
    if model.source.startswith("s3://"):
        return mirror_from_s3(model, dummy_weights)
    if model.source.startswith(("/", ".", "~")) or Path(model.source).is_dir():
        return use_folder(model, dummy_weights)
    return download_from_hub(model, dummy_weights)
