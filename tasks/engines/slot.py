"""A place for an engine: what the pool knows of the engine there, over all its restarts."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from tasks.engines.hunt import Hunt
from tasks.engines.launcher import EngineHandle
from tasks.engines.view import EngineView
from tasks.records import Json, Shard

SPEED_SECONDS = 10
STATS_APART = 0.5
"""Seconds: figures also come with each finished shard; the speed is taken of those that come once a second."""


@dataclass
class Slot:
    """`shards` are in the engine's hands; `backlog` are those it held when it died.

    `failures` counts deaths in a row with no record finished in between, `barren` culprits found in a row likewise,
    `fruitless` hunts without a culprit and `restarts` all restarts since a shard was last finished here.
    """

    view: EngineView
    handle: EngineHandle | None = None
    launch: int = 0
    facts: Json = field(default_factory=dict)
    shards: dict[int, Shard] = field(default_factory=dict)
    backlog: deque[Shard] = field(default_factory=deque)
    wants: bool = False
    in_flight: set[int] = field(default_factory=set)
    hunt: Hunt = field(default_factory=Hunt)
    overrides: Json = field(default_factory=dict)
    usual: Json = field(default_factory=dict)
    keep: set[str] = field(default_factory=set)
    failures: int = 0
    barren: int = 0
    fruitless: int = 0
    restarts: int = 0
    started: float = 0.0
    alive_at: float = 0.0
    restart_at: float | None = None
    ending: str = ""
    ending_since: float | None = None
    last_words: str = ""
    answers_only: bool = False
    """Its tokens show with an answer, not before: a server without metrics."""
    _progress: int = 0
    _servers_tokens: float | None = None
    _past_tokens: int = 0
    _past_idle: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_SECONDS + 1))

    @property
    def given_up(self) -> bool:
        return self.view.state == "given up"

    @property
    def up(self) -> bool:
        """Whether an engine is there that works."""
        return self.view.state == "running" and not self.ending

    def begin_launch(self) -> int:
        """A new engine is about to start; returns its number."""
        self.launch += 1
        self.view.state = "starting"
        self.wants, self.ending, self.ending_since, self.last_words = False, "", None, ""
        self.restart_at = None
        self.hunt = Hunt()
        self._recent.clear()
        self.started = self.alive_at = time.monotonic()
        return self.launch

    def ready(self, facts: Json) -> None:
        """The engine has started."""
        self.view.state = "running"
        self.facts = facts | {"start_seconds": round(time.monotonic() - self.started, 1)}
        self.alive_at = time.monotonic()

    def give(self, shard: Shard) -> None:
        """A shard goes to the engine."""
        if not self.shards:
            self.alive_at = time.monotonic()
        self.wants = False
        self.shards[shard.index] = shard
        self.view.shards = len(self.shards)

    def take_back(self, index: int) -> None:
        """A shard is done or failed."""
        shard = self.shards.pop(index, None)
        if shard is not None:
            self.hunt.suspects.difference_update(range(shard.start, shard.start + shard.records))
        self.view.shards = len(self.shards)
        self.alive_at = time.monotonic()

    def begin(self, record: int) -> None:
        """A record is in flight."""
        if not self.in_flight:
            self.alive_at = time.monotonic()
        self.in_flight.add(record)

    def end(self, record: int) -> None:
        """A record is made, or refused."""
        self.in_flight.discard(record)
        self.failures = self.barren = 0
        if self.hunt:
            self.hunt.suspects.discard(record)
            self.fruitless += not self.hunt

    def note(self, stats: Json) -> None:
        """The engine's figures, once a second."""
        now, view = time.monotonic(), self.view
        tokens, progress = self._past_tokens + stats["tokens"], stats.get("progress", 0)
        # A server tells of its tokens between two answers too, though not whose they are.
        servers, self._servers_tokens = self._servers_tokens, stats.get("server_tokens")
        self.answers_only = bool(stats.get("answers_only"))
        made = tokens != view.tokens or servers != self._servers_tokens
        if made or (not self.in_flight and (progress != self._progress or not self.shards)):
            self.alive_at = now
        self._progress = progress
        if not self._recent or now - self._recent[-1][0] > STATS_APART:
            self._recent.append((now, tokens))
        (then, before), seconds = self._recent[0], now - self._recent[0][0]
        view.tokens_per_second = (tokens - before) / seconds if now > then else 0.0
        view.tokens = tokens
        view.running, view.in_flight = stats["running"], stats["in_flight"]
        view.kv_cache_usage = stats["kv_cache_usage"]
        if (idle := stats.get("idle_seconds")) is not None:
            view.idle_seconds = round(self._past_idle + idle, 3)

    def died(self) -> tuple[EngineHandle | None, set[int]]:
        """The engine is gone; returns its handle, and what was in flight."""
        handle, self.handle = self.handle, None
        in_flight, self.in_flight = self.in_flight, set()
        view = self.view
        view.state, view.running, view.in_flight, view.shards, view.tokens_per_second = "dead", 0, 0, 0, 0.0
        self._past_tokens, self._past_idle = view.tokens, view.idle_seconds or 0.0
        return handle, in_flight

    def stood_still(self, seconds: float) -> None:
        """We did not look for so long: that time counts for nothing."""
        self.started += seconds
        self.alive_at += seconds
        if self.ending_since is not None:
            self.ending_since += seconds
