"""The GPUs of a box, shared by runs that know nothing of each other: no GPU is in two runs' hands.

A lock file a GPU, in one folder of the machine. The lock is the kernel's: it ends with the run that holds it and with
the worker that was given it, however they end, and not before the worker's memory is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tasks.config import EngineConfig
from tasks.engines.devices import gpu_names, visible_gpus
from tasks.errors import RunError
from tasks.run_log import log

FOLDER = "/tmp/datagen-flow-gpus"  # noqa: S108  (one place for all users of the machine)
FOLDER_VARIABLE = "DATAGEN_GPU_LOCKS"
"""Environment variable: another folder for the locks."""


class Gpus(Protocol):
    """What a run has of its machine: a group of GPUs for each engine, an empty one for an engine on the CPU."""

    groups: list[list[str]]
    most: int
    """GPUs that it takes when all are free."""
    trouble: str | None
    """Why there are none and never will be."""

    def take(self) -> None:
        """Take what is free, up to what the run may have."""

    def locks(self, group: int) -> list[int]:
        """Descriptors of the group's locks, for its worker to hold too."""

    def close(self) -> None:
        """Give all back."""


class NoGpus:
    """Engines on the CPU, or before someone else's GPUs."""

    def __init__(self, engines: int) -> None:
        self.groups: list[list[str]] = [[] for _ in range(engines)]
        self.most = 0
        self.trouble: str | None = None

    def take(self) -> None:
        return None

    def locks(self, group: int) -> list[int]:
        del group
        return []

    def close(self) -> None:
        return None


class SharedGpus:
    """GPUs that are locked against other runs. Nothing is taken before `take`, which never waits."""

    def __init__(self, engine: EngineConfig, owner: str) -> None:
        """`owner` is what others read of us while they wait, such as the run's output folder.

        Raises RunError where the machine has too few GPUs for the replicas asked for.
        """
        self._visible = visible_gpus()
        self._each = engine.gpus_per_replica
        self._replicas = _replicas(engine, self._visible)
        self.most = self._replicas * self._each
        self._waits = engine.wait_for_gpus
        self._names = {gpu: name.replace("/", "_") for gpu, name in gpu_names(self._visible).items()}
        self._owner = f"process {os.getpid()} ({owner})"
        self._held: dict[str, int] = {}
        self._told = False
        self.groups: list[list[str]] = []
        self.trouble: str | None = None

    def take(self) -> None:
        if len(self.groups) == self._replicas or self.trouble:
            return
        with _folder() as folder:
            while len(self.groups) < self._replicas and (group := self._free_group(folder)):
                self.groups.append(group)
        if not self.groups:
            self._tell(folder)

    def locks(self, group: int) -> list[int]:
        return [self._held[gpu] for gpu in self.groups[group]]

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
        self.groups.clear()

    def _free_group(self, folder: Path) -> list[str] | None:
        """As many free GPUs as an engine needs, locked; or none of them."""
        locked: dict[str, int] = {}
        for gpu in self._visible:
            if gpu not in self._held and (descriptor := _lock(folder / self._names[gpu], self._owner)) is not None:
                locked[gpu] = descriptor
            if len(locked) == self._each:
                self._held |= locked
                return list(locked)
        for descriptor in locked.values():
            os.close(descriptor)
        return None

    def _tell(self, folder: Path) -> None:
        holders = sorted({words for gpu in self._visible if (words := _read(folder / self._names[gpu]))})
        words = (
            f"of this machine's {len(self._visible)} GPUs fewer than {self._each} are free: others are in use by "
            f"{', '.join(holders) or 'other runs'}"
        )
        if not self._waits:
            self.trouble = f"engine.wait_for_gpus: {words}"
        elif not self._told:
            log.warning("waiting for GPUs: %s", words)
            self._told = True


def gpus_for(engine: EngineConfig, owner: str) -> Gpus:
    """The GPUs of this machine that the run may use, none taken yet; or its CPU.

    Raises RunError where the machine has too few for the replicas asked for.
    """
    if engine.kind == "openai":
        return NoGpus(len(engine.base_urls))
    return SharedGpus(engine, owner) if visible_gpus() else NoGpus(engine.replicas or 1)


def _replicas(engine: EngineConfig, gpus: list[str]) -> int:
    each = engine.gpus_per_replica
    replicas = engine.replicas or len(gpus) // each
    if replicas == 0 or replicas * each > len(gpus):
        wanted = f"{max(replicas, 1)} x {each} (engine.replicas x tensor_parallel_size x pipeline_parallel_size)"
        raise RunError(f"engine.replicas: {wanted} GPUs are asked for, {len(gpus)} are there: {', '.join(gpus)}")
    return replicas


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """The locks' folder, for one run at a time: a run that looks for several GPUs meets no other half-way."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, FOLDER))
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    descriptor = _open(folder / "taking")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(descriptor)


def _lock(path: Path, owner: str) -> int | None:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, owner.encode(), 0)
    return descriptor


def _open(path: Path) -> int:
    """Open a file that every user of the machine may lock. In a sticky folder another's file opens only as it is."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)
    return descriptor


def _read(path: Path) -> str:
    """Who holds the lock, if anyone does."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except BlockingIOError:
        return os.pread(descriptor, 1000, 0).decode(errors="replace")
    finally:
        os.close(descriptor)
