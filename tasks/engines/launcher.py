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
    """Starts engines, at once or when there is a place for them."""

    @property
    def slots(self) -> int:
        """How many there can be; may grow while the run goes on."""

    @property
    def trouble(self) -> str | None:
        """Why there can be no engine any more, in words for a person: the run ends with them."""

    def launch(self, slot: int, overrides: Json, tell: Callable[[Json], None]) -> EngineHandle:
        """Start the engine of a slot. Its events go to `tell`, from any thread.

        Several may come as one, `events`. One that must wait first says `placing` and then `placed`. The last event is
        `exit`: with `lost` the machine is gone and no record is to blame, with `hopeless` another try would end alike.
        """

    def close(self) -> None: ...
