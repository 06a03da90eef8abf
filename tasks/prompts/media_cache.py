"""Prepared images that several records share, each made once: a bounded, thread-safe least-recently-used store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


class ImageCache:
    """Keeps at most `max_bytes` of decoded pixels. Threads that ask for the same key at once wait for the one maker."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, Future[Image.Image]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Image.Image]) -> Image.Image:
        """The image of that key, made now if need be. What `make` raises is not kept."""
        with self._lock:
            future = self._made.get(key)
            if future is not None:
                self._made.move_to_end(key)
            mine = future is None
            if future is None:
                future = self._made[key] = Future()
        if mine:
            return self._fill(key, future, make)
        # Another's failure names another's record.
        return make() if future.exception() else future.result()

    def _fill(self, key: Hashable, future: Future[Image.Image], make: Callable[[], Image.Image]) -> Image.Image:
        try:
            image = make()
        except BaseException as error:
            with self._lock:
                del self._made[key]
            future.set_exception(error)
            raise
        future.set_result(image)
        with self._lock:
            self._bytes += image_bytes(image)
            self._evict()
        return image

    def _evict(self) -> None:
        for key in [key for key, future in self._made.items() if future.done()]:
            if self._bytes <= self._max_bytes:
                return
            self._bytes -= image_bytes(self._made.pop(key).result())


def image_bytes(image: Image.Image) -> int:
    """The size of its pixels in memory."""
    return image.width * image.height * len(image.getbands())
