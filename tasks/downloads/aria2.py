"""The `hfd` downloader: files by aria2c with many connections each, as the hfd script has them, from any mirror.

aria2c only moves bytes: that a file is right is checked afterwards by its hash. (With its control file lost, or over a
full-size damaged file, aria2c reports success.) The list of URLs goes in by a pipe, and where there is a token, each
redirect is resolved here, so that the token is on no command line, in no file, and at no other host.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from tasks.downloads import http
from tasks.downloads.hub_api import HubRepo, without_query
from tasks.downloads.repo_cache import RemoteFile, RepoCache
from tasks.errors import RunError
from tasks.run_log import log

Accept = Callable[[RemoteFile, Path], bool]

_OPTIONS = (
    "--no-conf",
    "--input-file=-",
    "--file-allocation=none",
    "--max-connection-per-server=16",
    "--split=16",
    "--min-split-size=1M",
    "--max-concurrent-downloads=4",
    "--continue=true",
    "--always-resume=false",  # from zero where the server cannot send a part of a file
    "--auto-save-interval=1",
    "--disk-cache=0",  # what the control file says is there is on the disk, whenever a kill comes
    "--allow-overwrite=true",
    "--auto-file-renaming=false",
    "--max-tries=5",
    "--retry-wait=2",
    "--show-console-readout=false",
    "--summary-interval=0",
    "--download-result=hide",
    "--console-log-level=error",
    "--enable-color=false",
)
_PR_SET_PDEATHSIG = 1


def is_installed() -> bool:
    """Whether there is an aria2c."""
    return shutil.which("aria2c") is not None


def require_installed() -> None:
    """Raise RunError where there is no aria2c."""
    if not is_installed():
        raise RunError(
            "model.downloader: hfd needs aria2c: install it (apt-get install aria2), or set downloader to hub"
        )


def partial_path(cache: RepoCache, file: RemoteFile) -> Path:
    """A file under way, with holes; `.aria2` beside it says where."""
    return cache.blobs / f"{file.oid}.aria2part"


def download(repo: HubRepo, commit: str, cache: RepoCache, files: list[RemoteFile], accept: Accept) -> None:
    """Fetch the files, handing each to `accept`. What fails is logged and left: the caller sees what lacks."""
    wanted = [file for file in files if not _already_whole(cache, file, accept)]
    if not wanted:
        return
    listed = _input_file(repo, commit, cache, wanted)
    complaint = _run_aria2c(listed, cache.blobs)
    if complaint:
        log.warning("aria2c: %s", without_query(complaint))
    for file in wanted:
        partial = partial_path(cache, file)
        if partial.exists() and not _control(partial).exists():
            accept(file, partial)


def _already_whole(cache: RepoCache, file: RemoteFile, accept: Accept) -> bool:
    """Bring what an earlier run left into a state that aria2c may go on from; True where it was the whole file."""
    partial, start = partial_path(cache, file), http.partial_path(cache, file)
    if partial.exists() and _control(partial).exists():
        start.unlink(missing_ok=True)
        return False
    if partial.exists():
        # Without its control file nobody knows the holes: it is whole, or worth nothing.
        return accept(file, partial)
    if start.exists() and start.stat().st_size <= file.size:
        start.replace(partial)  # written from the start on by the other downloader: aria2c appends to it
    return False


def _control(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.aria2")


def _input_file(repo: HubRepo, commit: str, cache: RepoCache, files: list[RemoteFile]) -> str:
    """aria2c's list of downloads. It may hold the token: never log it."""
    with ThreadPoolExecutor(8) as threads:
        sources = list(threads.map(lambda file: _source(repo, commit, file), files))
    lines = []
    for file, (url, headers) in zip(files, sources, strict=True):
        lines += [url, f"  dir={cache.blobs}", f"  out={partial_path(cache, file).name}"]
        lines += [f"  header={name}: {value}" for name, value in headers.items()]
    return "\n".join(lines) + "\n"


def _source(repo: HubRepo, commit: str, file: RemoteFile) -> tuple[str, dict[str, str]]:
    url = repo.url(commit, file.name)
    if repo.token is None:
        return url, {}
    # aria2c would send the header on to wherever the hub redirects it.
    location = repo.location(commit, file.name)
    if urlsplit(location).netloc == urlsplit(repo.endpoint).netloc:
        return location, repo.headers()
    return location, {}


def _run_aria2c(listed: str, folder: Path) -> str:
    """Run aria2c to its end; returns its last complaint. It ends with us, a kill -9 included."""
    command = ["aria2c", *_OPTIONS, f"--stop-with-process={os.getpid()}"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        preexec_fn=_end_with_parent(),
    )
    try:
        output, _ = process.communicate(listed)
    finally:
        process.kill()
        process.wait()
    complaints = [line for line in output.splitlines() if "[ERROR]" in line or "Exception" in line]
    if process.returncode == 0:
        return ""
    return complaints[-1] if complaints else f"exit status {process.returncode}"


def _end_with_parent() -> Callable[[], None] | None:
    """What the new process calls first. The library is loaded here: after the fork only a plain call is safe."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    return arm
