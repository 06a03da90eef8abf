"""download_model: the model as a local folder, whole, and known by its commit or its files' hash."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.config import ModelConfig
from tasks.downloads.hub import download_from_hub
from tasks.downloads.local import folder_identity, require_complete
from tasks.errors import RunError
from tasks.records import ModelManifest
from tasks.retries import retried


@task(
    name="download_model",
    tags=["download"],
    description="Get the model: a local folder is checked, a hub model downloaded at a pinned commit.",
    cache_policy=NO_CACHE,
    **retried(3, 10.0),
)
def download_model(model: ModelConfig, dummy_weights: bool = False) -> ModelManifest:
    """See `fetch_model`."""
    return fetch_model(model, dummy_weights)


def fetch_model(model: ModelConfig, dummy_weights: bool = False) -> ModelManifest:
    """The model's manifest; `dummy_weights` allows a folder that has none (vLLM's `load_format: dummy`).

    Raises RunError for a model that is missing, gated or incomplete.
    """
    folder = Path(model.source).expanduser()
    if not folder.is_dir():
        if model.source.startswith(("/", ".", "~")):
            raise RunError(f"model.source: {model.source} is not a folder")
        return download_from_hub(model, dummy_weights)
    require_complete(folder, model.source, dummy_weights)
    identity = folder_identity(folder, model.trust_remote_code)
    return ModelManifest(source=model.source, path=str(folder.absolute()), identity=identity)
