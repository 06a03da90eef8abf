"""The one live display of a run: samples, tokens a second, time left, each engine; plain lines without a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from tasks.engines.pool import EngineView, PoolView

LIVE_SECONDS = 0.5
PLAIN_SECONDS = 10.0


class ProgressDisplay:
    """Shows the pool's figures until the block ends. `total` are the samples of the run, `done` those already made."""

    def __init__(self, view: Callable[[], PoolView], total: int, done: int) -> None:
        self._view = view
        self._total = total
        self._done = done
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.percentage:.0f}%"),
            TimeElapsedColumn(), console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task("samples", total=total, completed=done)
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self._console.is_terminal:
            with Live(self._render(), console=self._console, refresh_per_second=4, transient=True) as live:
                while not self._ended.wait(LIVE_SECONDS):
                    live.update(self._render())
            return
        while not self._ended.wait(PLAIN_SECONDS):
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The figures as one plain line."""
        view = self._view()
        made = self._done + view.samples + view.errors
        speed = sum(engine.tokens_per_second for engine in view.engines)
        states = ", ".join(_engine_words(engine) for engine in view.engines)
        return f"{made}/{self._total} samples, {view.errors} errors, {speed:.0f} tokens/s, {self._eta(view)}; {states}"

    def _render(self) -> RenderableType:
        view = self._view()
        self._progress.update(self._task, completed=self._done + view.samples + view.errors)
        speed = sum(engine.tokens_per_second for engine in view.engines)
        lines = [Text(f"{speed:,.0f} tokens/s, {view.errors} errors, {self._eta(view)}", style="dim")]
        lines += [Text(_engine_words(engine), style="dim") for engine in view.engines]
        return Group(self._progress, *lines)

    def _eta(self, view: PoolView) -> str:
        made = view.samples + view.errors
        left = self._total - self._done - made
        if not made or left <= 0:
            return "time left: unknown" if left > 0 else "all made"
        seconds = left * (time.monotonic() - self._started) / made
        return f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """`1 h 05 min`, `3 min 20 s` or `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _engine_words(engine: EngineView) -> str:
    restarts = f", {engine.restarts} restarts" if engine.restarts else ""
    return (
        f"engine {engine.number}: {engine.state}, {engine.in_flight} in flight, "
        f"{engine.tokens_per_second:.0f} tokens/s{restarts}"
    )
