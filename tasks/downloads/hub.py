"""A model of the Hugging Face hub or a mirror: at a pinned commit, its needed files, every one verified by its hash.

What is there and whole is not asked for again: with a commit as `model.revision`, or with HF_HUB_OFFLINE, a present
model is used without a request; a branch or tag costs one, for its commit.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks.config import ModelConfig
from tasks.downloads import aria2, http
from tasks.downloads.hashes import HashCache, has_oid
from tasks.downloads.hub_api import HubRepo, is_offline
from tasks.downloads.local import folder_identity
from tasks.downloads.progress import shown
from tasks.downloads.repo_cache import RemoteFile, RepoCache, default_cache_dir
from tasks.downloads.selection import is_weights, needed_files, require_complete, require_names
from tasks.errors import RunError
from tasks.records import ModelManifest
from tasks.run_log import log

_IDLE_ROUNDS = 4
"""Rounds without a byte gained, after which a download is given up (and left to the task's retries)."""
_RETRY_SECONDS = 2.0
_THREADS = 4


def download_from_hub(config: ModelConfig, dummy_weights: bool) -> ModelManifest:
    """Download what is missing into the Hugging Face cache (`model.cache_dir`). Two runs at once download once.

    With `dummy_weights` no weights are fetched. Raises RunError for a model that is missing, gated or incomplete,
    and ConnectionError for a network that fails.
    """
    return _Download(config, dummy_weights).run()


class _Download:
    def __init__(self, config: ModelConfig, dummy_weights: bool) -> None:
        self.config = config
        self.dummy_weights = dummy_weights
        self.revision = config.revision or "main"
        folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir()
        self.cache = RepoCache(folder.absolute(), config.source)
        self.known = HashCache()

    def run(self) -> ModelManifest:
        commit = self._use_offline() if is_offline() else self._bring()
        folder = self.cache.snapshot(commit)
        require_complete(folder, self.config.source, self.dummy_weights)
        # Not the commit: one that changes the model card alone makes no shard again.
        identity = folder_identity(folder, self.config, self.dummy_weights, self.known)
        return ModelManifest(source=self.config.source, path=str(folder), identity=identity, revision=commit)

    def _bring(self) -> str:
        if self.config.downloader == "hfd":
            aria2.require_installed()
        repo = HubRepo.of(self.config)
        commit = self._commit(repo)
        listing = self.cache.listing(commit)
        if listing is None:
            listing = repo.files(commit)
            self.cache.keep_listing(commit, listing)
        wanted = self._wanted(listing)
        if self._missing(wanted):
            with self.cache.lock():
                self._fetch(repo, commit, wanted)
        self.cache.publish(commit, wanted, self.revision)
        self.known.save()
        return commit

    def _use_offline(self) -> str:
        """The commit of the model that is here. Makes no request."""
        commit = self.cache.commit_of(self.revision)
        if commit is None or not self.cache.snapshot(commit).is_dir():
            raise RunError(
                f"model.source: {self.config.source} is not in {self.cache.folder.parent}, and HF_HUB_OFFLINE is set: "
                "unset it to download the model"
            )
        listing = self.cache.listing(commit)
        wanted = self._wanted(listing) if listing is not None else self._linked(commit)
        if missing := self._missing(wanted):
            raise RunError(
                f"model.source: {self.config.source} is incomplete or damaged in {self.cache.folder} "
                f"({_some(missing)}), and HF_HUB_OFFLINE is set: unset it to fetch what is missing"
            )
        self.known.save()
        return commit

    def _commit(self, repo: HubRepo) -> str:
        here = self.cache.commit_of(self.revision)
        if here == self.revision:
            return here
        try:
            return repo.commit(self.revision)
        except ConnectionError as error:
            if here is None or (listing := self.cache.listing(here)) is None or self._missing(self._wanted(listing)):
                raise
            log.warning("%s; going on with the model in the cache, commit %s", error, here)
            return here

    def _wanted(self, listing: list[RemoteFile]) -> list[RemoteFile]:
        by_name = {file.name: file for file in listing}
        require_names(by_name, self.config.source, self.dummy_weights)
        return [by_name[name] for name in needed_files(by_name, self.config, self.dummy_weights)]

    def _linked(self, commit: str) -> list[RemoteFile]:
        """The files of a snapshot that huggingface_hub made: what the links lead to is named by its hash."""
        found = []
        for path in sorted(self.cache.snapshot(commit).rglob("*")):
            if path.is_symlink():
                name = path.relative_to(self.cache.snapshot(commit)).as_posix()
                found.append(RemoteFile(name, path.stat().st_size if path.exists() else 0, path.readlink().name))
        return [file for file in found if not (self.dummy_weights and is_weights(file.name))]

    def _missing(self, wanted: list[RemoteFile]) -> list[RemoteFile]:
        """Files that are not there with the right content; changes nothing."""
        with ThreadPoolExecutor(_THREADS) as threads:
            whole = list(threads.map(self._is_whole, wanted))
        return [file for file, there in zip(wanted, whole, strict=True) if not there]

    def _is_whole(self, file: RemoteFile) -> bool:
        blob = self.cache.blob(file)
        return blob.is_file() and blob.stat().st_size == file.size and has_oid(blob, file.oid, self.known)

    def _fetch(self, repo: HubRepo, commit: str, wanted: list[RemoteFile]) -> None:
        """Fetch what is missing, with the lock held: a run that held it before may have left nothing to do."""
        missing = self._missing(wanted)
        if not missing:
            return
        repo.location(commit, missing[0].name)  # whether we may have the model at all
        self._require_space(missing)
        idle, most = 0, self._bytes_here(wanted)
        while missing and idle < _IDLE_ROUNDS:
            time.sleep(_RETRY_SECONDS * idle)
            self._fetch_once(repo, commit, missing)
            here = self._bytes_here(wanted)
            idle, most = (0, here) if here > most else (idle + 1, most)
            missing = self._missing(missing)
        if missing:
            raise ConnectionError(
                f"model.source: {len(missing)} files of {self.config.source} could not be downloaded whole from "
                f"{repo.endpoint} ({_some(missing)}): run again, it goes on where it stopped"
            )

    def _require_space(self, missing: list[RemoteFile]) -> None:
        self.cache.blobs.mkdir(parents=True, exist_ok=True)
        needed = sum(file.size for file in missing) - self._bytes_here(missing)
        free = shutil.disk_usage(self.cache.blobs).free
        if needed > free:
            raise RunError(
                f"model.cache_dir: {self.config.source} needs {needed / 1e9:.1f} GB more in "
                f"{self.cache.folder.parent}, which has {free / 1e9:.1f} GB free: free some, or set another folder"
            )

    def _fetch_once(self, repo: HubRepo, commit: str, missing: list[RemoteFile]) -> None:
        for file in missing:
            if self.cache.blob(file).exists():
                log.warning("%s in the cache is damaged: fetching it again", file.name)
                self.cache.blob(file).unlink()
        downloader = aria2.download if self._by_aria2(repo) else http.download
        total = sum(file.size for file in missing)
        with shown(self.config.source, total, lambda: self._bytes_here(missing)):
            downloader(repo, commit, self.cache, missing, self._accept)
        self.known.save()

    def _by_aria2(self, repo: HubRepo) -> bool:
        if self.config.downloader == "auto":
            return repo.is_mirror and aria2.is_installed()
        return self.config.downloader == "hfd"

    def _accept(self, file: RemoteFile, partial: Path) -> bool:
        """Make a downloaded file a blob if its hash is right, else remove it."""
        if has_oid(partial, file.oid, self.known):
            self.known.moved(partial, self.cache.blob(file))
            for leftover in self.cache.blobs.glob(f"{file.oid}.*part*"):
                leftover.unlink(missing_ok=True)
            return True
        log.warning("%s came damaged: its hash is not the hub's; fetching it again", file.name)
        partial.unlink()
        return False

    def _bytes_here(self, files: list[RemoteFile]) -> int:
        """Bytes of the files that are on the disk, whole or under way."""
        try:
            sizes = {path.name: path.stat().st_blocks * 512 for path in self.cache.blobs.iterdir()}
        except FileNotFoundError:
            return 0
        # Allocated blocks, not length: a file under way has holes.
        return sum(
            min(max((n for name, n in sizes.items() if name.startswith(f.oid)), default=0), f.size) for f in files
        )


def _some(files: list[RemoteFile]) -> str:
    names = ", ".join(file.name for file in files[:3])
    return names if len(files) <= 3 else f"{names} and {len(files) - 3} more"
