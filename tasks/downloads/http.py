"""The `hub` downloader: files by huggingface_hub, some at once, each going on from where a killed run left it.

huggingface_hub's own snapshot_download starts a file again from zero; here a partial file is kept beside the blobs
(and a kill loses the last 10 MB of it, huggingface_hub's block).
Files in Xet storage go by huggingface_hub's Xet client (chunks in parallel), which does start a file again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from tasks.downloads.hub_api import HubRepo, without_query
from tasks.downloads.repo_cache import RemoteFile, RepoCache
from tasks.run_log import log

_FILES_AT_ONCE = 8

Accept = Callable[[RemoteFile, Path], bool]


def partial_path(cache: RepoCache, file: RemoteFile) -> Path:
    """The first part of a file, written from its start on."""
    return cache.blobs / f"{file.oid}.part"


def download(repo: HubRepo, commit: str, cache: RepoCache, files: list[RemoteFile], accept: Accept) -> None:
    """Fetch the files, handing each to `accept`. A file that fails is logged and left: the caller sees what lacks."""

    from huggingface_hub.utils.tqdm import disable_progress_bars

    def fetch(file: RemoteFile) -> None:
        try:
            if _by_xet(repo, file):
                _fetch_xet(repo, commit, cache, file)
            else:
                accept(file, _fetch(repo, commit, cache, file))
        except Exception as error:
            log.warning("%s: %s", file.name, without_query(str(error) or repr(error)))

    disable_progress_bars()  # the caller shows the progress of all files together
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        list(threads.map(fetch, files))


def _fetch(repo: HubRepo, commit: str, cache: RepoCache, file: RemoteFile) -> Path:
    from huggingface_hub.file_download import http_get

    partial = partial_path(cache, file)
    with partial.open("ab") as content:
        if content.tell() > file.size:
            content.truncate(0)
        have = content.seek(0, 2)
        http_get(
            repo.url(commit, file.name),
            content,
            resume_size=have,
            headers={**repo.headers(), "Accept-Encoding": "identity"},  # a range of a compressed body is none of ours
            expected_size=file.size,
            displayed_filename=file.name,
        )
    return partial


def _fetch_xet(repo: HubRepo, commit: str, cache: RepoCache, file: RemoteFile) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(
        repo.repo_id,
        file.name,
        revision=commit,
        cache_dir=cache.folder.parent,
        endpoint=repo.endpoint,
        token=repo.token or False,
    )


def _by_xet(repo: HubRepo, file: RemoteFile) -> bool:
    # A mirror hands on the hub's listing, but Xet's servers are the hub's own, which mirrors are there to avoid.
    from huggingface_hub import constants

    return file.xet and not repo.is_mirror and not constants.HF_HUB_DISABLE_XET and bool(find_spec("hf_xet"))
