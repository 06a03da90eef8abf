"""How many samples may be in flight at a server: as many as make it faster, and no more than it takes.

The limit doubles while more in flight make more tokens a second, and goes back one step where they do not: they would
only wait in the server's queue. A refusal (429, 503) shrinks it at once; after one it grows by small steps.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

FIRST_LIMIT = 16
FASTER = 1.1
"""What more in flight must gain to be worth it."""
SHRINK = 0.7
HOLD_EPOCHS = 8
"""Epochs at a limit that was found best, before a larger one is tried again."""


class Limiter:
    """Room for samples in flight, `unit` a request; those that find none wait their turn, in order. For one event loop.

    An epoch is the time in which as many samples end as the limit allows in flight.
    """

    def __init__(self, most: int, unit: int = 1) -> None:
        self._most = max(most, unit)
        self._unit = unit
        self.limit = min(max(FIRST_LIMIT, 2 * unit), self._most)
        self.in_flight = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._refused = False
        self._shrunk_at = 0.0
        self._before = self.limit
        self._best = 0.0
        self._hold = 0
        self._start_epoch()

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._queue)

    @asynccontextmanager
    async def room(self, samples: int) -> AsyncIterator[None]:
        """Hold room for so many samples; a request larger than the limit goes alone."""
        await self._acquire(samples)
        try:
            yield
        finally:
            self.in_flight -= samples
            self._wake()

    def finished(self, samples: int, tokens: int) -> None:
        """A request was answered, inside its `room`; the limit may grow."""
        self._samples += samples
        self._tokens += tokens
        if not self._queue:
            self._start_epoch()  # the limit holds nothing up, so nothing can be learnt
        elif self._samples >= self.limit:
            self._end_epoch(self._tokens / max(time.monotonic() - self._began, 1e-6))

    def refused(self, sent_at: float) -> None:
        """A request sent at that time (time.monotonic) was refused for load. One shrink answers for all before it."""
        if sent_at < self._shrunk_at:
            return
        self.limit = max(1, int(min(self.limit, self.in_flight) * SHRINK))
        self._refused, self._shrunk_at = True, time.monotonic()
        self._start_epoch()

    def _end_epoch(self, speed: float) -> None:
        if self._refused:
            self._grow_to(self.limit + max(self._unit, self.limit // 16))
        elif self._hold > 0:
            self._hold -= 1
            self._best = speed
            if self._hold == 0:
                self._grow_to(self.limit * 2)
        elif speed > self._best * FASTER:
            self._best = speed
            self._grow_to(self.limit * 2)
        else:
            self.limit, self._hold = self._before, HOLD_EPOCHS
        self._start_epoch()

    def _grow_to(self, limit: int) -> None:
        self._before, self.limit = self.limit, min(limit, self._most)
        self._wake()

    def _start_epoch(self) -> None:
        self._began, self._samples, self._tokens = time.monotonic(), 0, 0

    def _fits(self, samples: int) -> bool:
        return self.in_flight == 0 or self.in_flight + samples <= self.limit

    async def _acquire(self, samples: int) -> None:
        if not self._queue and self._fits(samples):
            self.in_flight += samples
            return
        future = asyncio.get_running_loop().create_future()
        self._queue.append((samples, future))
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.in_flight -= samples
            elif (samples, future) in self._queue:
                self._queue.remove((samples, future))
            self._wake()
            raise

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            samples, future = self._queue.popleft()
            if not future.cancelled():  # its task may not have heard of it yet
                self.in_flight += samples
                future.set_result(None)
