"""A model of the Hugging Face hub (or a mirror), by huggingface_hub: its needed files, at a pinned commit."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.config import ModelConfig
from tasks.downloads.local import needed_files, require_complete
from tasks.errors import RunError
from tasks.records import ModelManifest


def download_from_hub(config: ModelConfig, dummy_weights: bool) -> ModelManifest:
    """Download what is missing into the Hugging Face cache. With HF_HUB_OFFLINE=1 no request is made.

    Raises RunError for a model that is missing, gated or incomplete, and OSError for a network that fails.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = config.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    source = config.source
    try:
        if constants.is_offline_mode():
            folder = snapshot_download(
                source, revision=config.revision, cache_dir=config.cache_dir, local_files_only=True
            )
            commit = Path(folder).name
        else:
            info = HfApi(endpoint=endpoint).model_info(source, revision=config.revision)
            commit = str(info.sha)
            names = needed_files((f.rfilename for f in info.siblings or []), config.trust_remote_code)
            folder = snapshot_download(
                source, revision=commit, cache_dir=config.cache_dir, endpoint=endpoint, allow_patterns=names
            )
    except GatedRepoError:
        raise RunError(
            f"model.source: {source} is gated: accept its licence on its page at {endpoint}/{source} and set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise RunError(f"model.revision: {source} has no revision {config.revision!r}") from None
    except RepositoryNotFoundError:
        raise RunError(
            f"model.source: {endpoint} has no model {source!r}, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except HFValidationError:
        raise RunError(f"model.source: {source!r} is neither a folder that exists nor a hub id (org/name)") from None
    except LocalEntryNotFoundError:
        raise RunError(f"model.source: {source} is not in the cache, and the hub cannot be asked (offline)") from None
    require_complete(Path(folder), source, dummy_weights)
    return ModelManifest(source=source, path=str(folder), identity=commit, revision=commit)
