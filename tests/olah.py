"""A real mirror of the hub (olah) on loopback, serving models from local git repositories, offline.

olah wants other versions of our packages, so it lives in an environment of its own, made once a machine.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tasks.engines.lifeline import on_parent_death
from tests.hub import LFS_BYTES
from tests.models import models_dir
from tests.ports import free_port

_VERSION = "0.5.4"
_START_SECONDS = 120


@contextmanager
def running_olah(folder: Path, models: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Serve models (files by name, by hub id) from below `folder`; yields the endpoint."""
    for model, files in models.items():
        _make_repository(folder / "mirrors" / "models" / model, files)
    port = free_port()
    config = folder / "olah.toml"
    config.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder}/repos"\n'
        f'mirror-netloc = "127.0.0.1:{port}"\nmirror-lfs-netloc = "127.0.0.1:{port}"\n'
        f'mirrors-path = ["{folder}/mirrors"]\n[accessibility]\noffline = true\n'
    )
    with _output(folder) as output:
        process = subprocess.Popen(
            [str(_environment() / "bin" / "olah-cli"), "-c", str(config), "--log-path", str(folder / "logs")],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: on_parent_death(signal.SIGKILL),
        )
        try:
            endpoint = f"http://127.0.0.1:{port}"
            _wait(endpoint, process, folder)
            yield endpoint
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _output(folder: Path) -> Iterator[int]:
    with (folder / "output.txt").open("wb") as file:
        yield file.fileno()


def _environment() -> Path:
    home = models_dir() / f"olah-{_VERSION}"
    done = home / "installed"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not done.exists():
            venv.create(home, with_pip=True, clear=True)
            install = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", f"olah=={_VERSION}", "fastapi<0.155"]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            subprocess.run(install, check=True, env=environment)
            done.touch()
    return home


def _make_repository(folder: Path, files: dict[str, bytes]) -> None:
    """A git clone as olah wants it: small files as they are, large ones as LFS pointers and objects."""
    folder.mkdir(parents=True)
    _git(folder, "init", "-q", "-b", "main")
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(_pointer(folder, data) if len(data) >= LFS_BYTES else data)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-q", "-m", "model")


def _pointer(folder: Path, data: bytes) -> bytes:
    oid = hashlib.sha256(data).hexdigest()
    content = folder / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
    content.parent.mkdir(parents=True, exist_ok=True)
    content.write_bytes(data)
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()


def _git(folder: Path, *arguments: str) -> None:
    # Not the machine's own settings: a git-lfs filter there would make pointers of our pointers.
    identity = {f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True)


def _wait(endpoint: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "output.txt").read_text()
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError((folder / "output.txt").read_text())
