"""The shards that are asked for: who waits for each, which no engine has yet, and how far each has come."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Future

from tasks.engines.view import ShardView
from tasks.records import Json, Shard, ShardManifest


class Orders:
    """Owned by the pool's thread; `samples` and `errors` count the rows of this run, `resumed` the others that were in
    finished shards (less those made twice, after a crash). Others may look at views."""

    def __init__(self) -> None:
        self.samples = 0
        self.errors = 0
        self.resumed = 0
        self.waiting: deque[Shard] = deque()
        self._futures: dict[int, Future[ShardManifest]] = {}
        self._rows: dict[int, Counter[str]] = {}

    def __len__(self) -> int:
        """Shards that are not made yet."""
        return len(self._futures)

    def add(self, shard: Shard, future: Future[ShardManifest]) -> None:
        """Somebody waits for a shard."""
        self._futures[shard.index] = future
        self.waiting.append(shard)

    def give_back(self, shards: Iterable[Shard]) -> None:
        """Shards that an engine will not make after all; they come first."""
        self.waiting.extendleft(reversed(list(shards)))

    def note_rows(self, event: Json) -> None:
        """Rows of a shard are made."""
        self.samples += event["samples"]
        self.errors += event["errors"]
        rows = self._rows.setdefault(event["shard"], Counter())
        rows.update({"samples": event["samples"], "errors": event["errors"]})

    def done(self, manifest: ShardManifest, index: int) -> None:
        """A shard is made."""
        heard = self._rows.pop(index, Counter())
        self.resumed += manifest.records * manifest.n - heard["samples"] - heard["errors"]
        future = self._futures.pop(index, None)
        if future is not None:
            future.set_result(manifest)

    def fail(self, index: int, error: Exception) -> None:
        """A shard is not made this time; the rows that it has so far are kept in its chunks."""
        future = self._futures.pop(index, None)
        if future is not None:
            future.set_exception(error)

    def fail_all(self, error: Exception) -> None:
        """Nothing that is asked for will be made."""
        for index in list(self._futures):
            self.fail(index, error)
        self.waiting.clear()

    def view(self, index: int, engine: int) -> ShardView:
        """A shard under way."""
        rows = self._rows.get(index, Counter())
        return ShardView(engine, rows["samples"], rows["errors"])
