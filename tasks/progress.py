"""How far a run is: in words and figures, and as the one live display of a terminal (plain lines without one)."""

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


class RunProgress:
    """The run's figures as sentences. `total` are the samples of the run, `done` those made before it; `n` a record."""

    def __init__(self, total: int, done: int, n: int) -> None:
        self.total = total
        self.done = done
        self._n = n
        self._first: float | None = None

    def made(self, view: PoolView) -> int:
        """Samples made in all, errors among them."""
        return min(self.total, self.done + view.samples + view.errors + view.resumed)

    def percent(self, view: PoolView) -> float:
        return round(100 * self.made(view) / self.total, 2) if self.total else 100.0

    def sentence(self, view: PoolView) -> str:
        """All of it, the most wanted first: it may be cut where there is little room."""
        made = self.made(view)
        parts = [f"{self.percent(view):.0f}%", self.eta(view), f"{made:,} of {self.total:,} samples"]
        parts += [f"{made // self._n:,} of {self.total // self._n:,} records", f"{view.errors:,} errors"]
        parts.append(f"{sum(engine.tokens_per_second for engine in view.engines):,.0f} tokens/s")
        if self.done:
            parts.append(f"{self.done:,} samples were there before")
        return " · ".join(parts)

    def pace(self, view: PoolView) -> str:
        """Errors, speed and time left."""
        speed = sum(engine.tokens_per_second for engine in view.engines)
        return f"{view.errors:,} errors, {speed:,.0f} tokens/s, {self.eta(view)}"

    def eta(self, view: PoolView) -> str:
        self._generating_since(view)
        now = view.samples + view.errors
        left = self.total - self.made(view)
        if left <= 0:
            return "all made"
        if not now:
            return "starting" if self._first is None else "time left: unknown"
        return f"about {duration(left * (time.monotonic() - self._generating_since(view)) / now)} left"

    def _generating_since(self, view: PoolView) -> float:
        """Engines that start do not count: loading a model takes minutes, and tells nothing of what is left."""
        if self._first is None and any(engine.tokens for engine in view.engines):
            self._first = time.monotonic()
        return self._first or time.monotonic()


class ProgressDisplay:
    """Shows the pool's figures in the terminal until the block ends."""

    def __init__(self, view: Callable[[], PoolView], progress: RunProgress) -> None:
        self._view = view
        self._run_progress = progress
        self._ended = threading.Event()
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.percentage:.0f}%"),
            TimeElapsedColumn(), console=self._console,
        )  # fmt: skip
        self._task = self._progress.add_task("samples", total=progress.total, completed=progress.done)
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
        view, progress = self._view(), self._run_progress
        states = ", ".join(_engine_words(engine) for engine in view.engines)
        return f"{progress.made(view)}/{progress.total} samples, {progress.pace(view)}; {states}"

    def _render(self) -> RenderableType:
        view = self._view()
        self._progress.update(self._task, completed=self._run_progress.made(view))
        lines = [Text(self._run_progress.pace(view), style="dim")]
        lines += [Text(_engine_words(engine), style="dim") for engine in view.engines]
        return Group(self._progress, *lines)


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
