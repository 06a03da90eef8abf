"""What the hub (or a mirror of it) says of a model: its commit, its files, who may have them; by huggingface_hub.

The endpoint is passed with every call: huggingface_hub reads HF_ENDPOINT only when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.config import ModelConfig
from tasks.downloads.repo_cache import RemoteFile
from tasks.errors import RunError

HUB = "https://huggingface.co"
_OID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_CHATTY = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
_TRUE = {"1", "ON", "YES", "TRUE"}


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids requests."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


@dataclass(frozen=True)
class HubRepo:
    """A model at an endpoint. The token, from HF_TOKEN or `hf auth login`, is never shown."""

    repo_id: str
    endpoint: str
    token: str | None = field(repr=False)

    @classmethod
    def of(cls, config: ModelConfig) -> HubRepo:
        from huggingface_hub import get_token

        for name in _CHATTY:  # they log each URL, signed ones with their signature
            logging.getLogger(name).setLevel(logging.WARNING)
        endpoint = config.endpoint or os.environ.get("HF_ENDPOINT") or HUB
        return cls(config.source, endpoint.rstrip("/"), get_token())

    @property
    def is_mirror(self) -> bool:
        return self.endpoint != HUB

    def commit(self, revision: str) -> str:
        """The commit that a branch or tag is now."""
        from huggingface_hub import HfApi

        with self._errors(revision):
            info = HfApi(endpoint=self.endpoint, token=self.token or False).model_info(self.repo_id, revision=revision)
        if not info.sha or not _OID.fullmatch(info.sha):
            raise RunError(
                f"model.endpoint: {self.endpoint} does not name the commit of {self.repo_id}: no hub mirror?"
            )
        return str(info.sha)

    def files(self, commit: str) -> list[RemoteFile]:
        """All files of a commit, with their sizes and hashes."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with self._errors(commit):
            api = HfApi(endpoint=self.endpoint, token=self.token or False)
            entries = list(api.list_repo_tree(self.repo_id, recursive=True, revision=commit))
        return [self._file(entry) for entry in entries if isinstance(entry, RepoFile)]

    def _file(self, entry: Any) -> RemoteFile:
        """A listed file. Its name and oid become paths of ours, so an endpoint may not choose just any."""
        oid = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if not _OID.fullmatch(oid) or ".." in Path(entry.path).parts or entry.path.startswith("/"):
            raise RunError(f"model.endpoint: {self.endpoint} lists {entry.path!r} with hash {oid!r}: no hub mirror?")
        return RemoteFile(entry.path, entry.size, oid, bool(getattr(entry, "xet_hash", None)))

    def url(self, commit: str, name: str) -> str:
        """Where the file is downloaded from; it may redirect."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo_id, name, revision=commit, endpoint=self.endpoint)

    def location(self, commit: str, name: str) -> str:
        """The URL that a file's redirect leads to, asked for with the token; the file's own where there is none.

        Raises RunError for a model that we may not have.
        """
        from huggingface_hub import get_hf_file_metadata

        with self._errors(commit):
            metadata = get_hf_file_metadata(
                self.url(commit, name), token=self.token or False, timeout=30.0, endpoint=self.endpoint
            )
        return metadata.location

    def headers(self) -> dict[str, str]:
        """Headers of a download. They hold the token: never log them."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @contextlib.contextmanager
    def _errors(self, revision: str) -> Iterator[None]:
        """Turn the hub's refusals into a RunError that says what to do, and a failing network into ConnectionError."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            yield
        except GatedRepoError:
            raise RunError(self._gated()) from None
        except RevisionNotFoundError:
            raise RunError(f"model.revision: {self.repo_id} has no revision {revision!r} at {self.endpoint}") from None
        except HFValidationError:
            raise RunError(
                f"model.source: {self.repo_id!r} is neither a folder that exists nor a hub id (org/name)"
            ) from None
        except RepositoryNotFoundError:
            raise RunError(
                f"model.source: there is no folder {self.repo_id}, and {self.endpoint} has no such model, or it is "
                "private: check the name, or set HF_TOKEN to a token that may read it"
            ) from None
        except HfHubHTTPError as error:
            raise self._refused(error.response.status_code if error.response is not None else 0) from None
        except Exception as error:
            if _is_network(error):
                raise ConnectionError(
                    f"model.source: {self.endpoint} cannot be reached ({type(error).__name__}): check the network, "
                    "or set model.endpoint or HF_ENDPOINT to a mirror"
                ) from None
            raise

    def _gated(self) -> str:
        has = "the licence with HF_TOKEN's account" if self.token else "its licence"
        then = "" if self.token else " and set HF_TOKEN"
        return f"model.source: {self.repo_id} is gated: accept {has} at {HUB}/{self.repo_id}{then}"

    def _refused(self, status: int) -> Exception:
        if status in (401, 403):
            return RunError(f"model.source: {self.endpoint} refuses HF_TOKEN for {self.repo_id}: set a valid token")
        return ConnectionError(f"model.source: {self.endpoint} answered {status} for {self.repo_id}: try again later")


def without_query(text: str) -> str:
    """A message on one line, URLs in it without what follows `?`: a signed URL is a key to the file."""
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1?…", " ".join(text.split()))


def _is_network(error: Exception) -> bool:
    # huggingface_hub has changed its HTTP library with its versions; all of them name these alike.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "RequestException", "ConnectionError"})
