"""Memory for the images and frames of records that are being prepared, wait, or are in flight."""

from __future__ import annotations

import asyncio
import os

LEAST_BYTES = 2 << 30
SHARE_OF_MEMORY = 32
FIRST_GUESS = 8
"""Records prepared at once before it is known how large they are."""


class MediaRoom:
    """A record takes room before it is prepared, as much as the largest so far needed, and gives back what it spares.

    A record alone always has room. For one event loop, in which one task takes.
    """

    def __init__(self, most: int | None = None) -> None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.held = 0
        self._most = most or max(LEAST_BYTES, memory // SHARE_OF_MEMORY)
        self._largest: int | None = None
        self._freed = asyncio.Event()

    async def take(self) -> int:
        """Wait for room; the bytes that were taken."""
        while self.held and self.held + self._expected > self._most:
            self._freed.clear()
            await self._freed.wait()
        taken = self._expected
        self.held += taken
        return taken

    def settle(self, taken: int, size: int) -> None:
        """What room was taken for is prepared and has this size (0: it failed)."""
        self._largest = max(self._largest or 0, size)
        self.give_back(taken - size)

    def give_back(self, size: int) -> None:
        """It is gone."""
        self.held -= size
        self._freed.set()

    @property
    def _expected(self) -> int:
        return self._most // FIRST_GUESS if self._largest is None else self._largest
