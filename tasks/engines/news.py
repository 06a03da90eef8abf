"""What is worth telling of the engines while they run: starts, and warnings and errors of their logs, within bounds.

vLLM's start-up is not: its lines pass by until the engine is ready. A start that fails is told by the pool.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

from tasks.engines.pool import EngineView

log = logging.getLogger("datagen.engines")

LINES_A_MINUTE = 10
LINES_A_RUN = 200
MOST_CHARACTERS = 400
MOST_BYTES = 1 << 20
"""Of an engine's log, looked at in one go; what is before them is passed over."""

_LEVEL = re.compile(rb"^(?:\([^)]{1,80}\)\s*)?(WARNING|ERROR|CRITICAL)\b")


class EngineNews:
    """`look` is called every second or so, by one thread, with the engines as they are; it logs what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states: dict[int, str] = {}
        self._started: dict[int, float] = {}
        self._logs: dict[int, _LogTail] = {}

    def look(self, engines: list[EngineView]) -> None:
        for engine in engines:
            before, now = self._states.get(engine.number, "waiting"), engine.state
            self._states[engine.number] = now
            tail = self._logs.get(engine.number)
            if tail is None:
                tail = self._logs[engine.number] = _LogTail(self._folder / f"engine-{engine.number}.log")
            lines = tail.new_lines()
            if now == before == "running":
                tail.tell(engine.number, lines)
            elif now != before:
                self._tell_state(engine, now)

    def _tell_state(self, engine: EngineView, state: str) -> None:
        if state == "starting":
            self._started[engine.number] = time.monotonic()
            log.info("engine %d is starting", engine.number)
        elif state == "running":
            seconds = time.monotonic() - self._started.get(engine.number, time.monotonic())
            log.info("engine %d is ready, after %.0f s", engine.number, seconds)


class _LogTail:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._minute = 0.0
        self._told_this_minute = 0
        self._told = 0
        self._last = b""

    def new_lines(self) -> list[bytes]:
        """Whole lines written since the last time."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self._at, size - MOST_BYTES) if size >= self._at else 0)
                content = file.read(MOST_BYTES)
                self._at = file.tell()
        except OSError:
            return []
        whole, _, rest = content.rpartition(b"\n")
        self._at -= len(rest)
        return whole.split(b"\n")

    def tell(self, number: int, lines: list[bytes]) -> None:
        """Log the warnings and errors among them, a repeated one once, and never more than the bounds."""
        if time.monotonic() - self._minute > 60:
            self._minute, self._told_this_minute = time.monotonic(), 0
        for line in lines:
            level = _LEVEL.match(line)
            message = _without_time(line)
            if level is None or message == self._last:
                continue
            self._last = message
            if self._told_this_minute >= LINES_A_MINUTE or self._told >= LINES_A_RUN:
                continue
            self._told_this_minute += 1
            self._told += 1
            text = message.decode(errors="replace")[:MOST_CHARACTERS]
            log.log(logging.getLevelNamesMapping()[level[1].decode()], "engine %d: %s", number, text)
            if self._told_this_minute == LINES_A_MINUTE:
                log.info("engine %d: more lines of this minute are in %s", number, self._path)


def _without_time(line: bytes) -> bytes:
    """`WARNING 11-25 09:00:00 [core.py:12] text` without its level and time."""
    return re.sub(rb"^(?:\([^)]{1,80}\)\s*)?[A-Z]+ (?:[\d-]+ [\d:.,]+ )?", b"", line)
