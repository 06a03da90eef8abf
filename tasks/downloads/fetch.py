"""The model as a local folder of this machine, however it gets here."""

from __future__ import annotations

from pathlib import Path

from tasks.config import ModelConfig
from tasks.downloads.hub import download_from_hub
from tasks.downloads.local import use_folder
from tasks.downloads.s3 import mirror_from_s3
from tasks.records import ModelManifest


def fetch_model(model: ModelConfig, dummy_weights: bool = False) -> ModelManifest:
    """The model's manifest; `dummy_weights` allows a folder that has none (vLLM's `load_format: dummy`).

    Several processes of a machine at once download once. Raises RunError for a model that is missing, gated or
    incomplete, and OSError for a network that fails.
    """
    if model.source.startswith("s3://"):
        return mirror_from_s3(model, dummy_weights)
    if model.source.startswith(("/", ".", "~")) or Path(model.source).is_dir():
        return use_folder(model, dummy_weights)
    return download_from_hub(model, dummy_weights)
