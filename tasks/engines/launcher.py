"""How the pool sees engines: something that starts them, and a handle on each that was started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tasks.records import Json


class EngineHandle(Protocol):
    """A started engine."""

    log_path: str

    def send(self, command: Json) -> None:
        """Never raises and never blocks: an engine that is gone says so by its `exit` event."""

    def end(self, grace: float) -> None:
        """End it and everything below it; returns when it is gone."""


class Launcher(Protocol):
    """Starts engines; `slots` is how many there can be, and may grow while the run goes on."""

    slots: int

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> EngineHandle:
        """Start the engine of a slot. Its events go to `tell`, from any thread; the last is `exit`."""

    def close(self) -> None: ...
