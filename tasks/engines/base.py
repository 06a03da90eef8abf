"""What every engine does, whatever is behind it: prepare a conversation (in threads), complete it (event loop)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from tasks.config import GenerateConfig
from tasks.prompts.base import Parsed
from tasks.prompts.conversation import Conversation
from tasks.records import Json


class EngineSpec(BaseModel):
    """All that an engine's process needs to know; it holds no secret and travels as JSON.

    `number` is the engine's place in the pool, `key` names the folder of the run's shards, `dataset_roots` are the
    folders that records' media may lie in, `overrides` are engine arguments that win over the config's (gentler
    settings after a hang), `window` is the number of sequences in flight (default: from the engine's own limits),
    `served_model` is the model's name on the servers of `engine.kind: openai`,
    `placement_group` is that of a replica across the nodes of a Ray cluster.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    config: GenerateConfig
    model_path: str
    key: str
    dataset_roots: tuple[str, ...] = ()
    overrides: Json = {}
    window: int | None = None
    served_model: str = ""
    placement_group: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation ready for the engine. `text` goes to the row's `prompt`; `payload` is the engine's own."""

    text: str
    payload: Any
    media_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """The settings of one request that differ between requests."""

    n: int
    seed: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """One sample."""

    parsed: Parsed
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """`tokens` counts what was generated since the start, step by step: the only proof of life there is.

    `idle_seconds` is the time between two requests in which the engine had none; None where it cannot be known.
    """

    tokens: int = 0
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    idle_seconds: float | None = None
    detail: Json = field(default_factory=dict)


class EngineDeadError(Exception):
    """The engine is gone or broken; what was in flight is owed again."""


class Engine(Protocol):
    """A model replica (or a server) that completes conversations."""

    max_num_seqs: int
    """Sequences it generates at once; the feeder keeps more than these in flight."""
    facts: Json
    """What the run's manifest says of it: versions, limits, device."""

    def prepare(self, conversation: Conversation) -> Prepared:
        """Called from several threads. Raises RecordError, also for a prompt longer than the model's context."""

    async def generate(self, request_id: str, prepared: Prepared, ask: Ask) -> list[Generated]:
        """`ask.n` samples, in order. Raises RecordError for this request alone, EngineDeadError for all."""

    def stats(self) -> EngineStats:
        """Counters as they are now; never blocks."""

    async def close(self) -> None:
        """End the engine; requests in flight are dropped."""
