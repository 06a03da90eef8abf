"""Tells an engine that hangs from one that works: only tokens prove life, health checks lie.

An engine that should be reading and preparing records but has none in flight is given longer: a shard's place in a
large compressed file is found by reading up to it.
"""

from __future__ import annotations

from tasks.config import EngineConfig
from tasks.engines.slot import Slot

IDLE_FACTOR = 3.0
"""Times `stall_timeout` that an engine may take to get a first record of its shards into flight."""
ANSWERS_FACTOR = 12.0
"""Times `stall_timeout` that a server may take to an answer which shows no token before."""
END_SECONDS = 60.0
"""Seconds after which a killed engine counts as one that cannot be ended (a process stuck in a driver)."""
PAUSE_SECONDS = 5.0
"""A longer gap between two looks means that we stood still (Ctrl-Z, a suspended machine), not the engines."""


def complaint(slot: Slot, config: EngineConfig, now: float) -> str | None:
    """Why the engine of a slot must be ended, in words; None while all is well."""
    if slot.view.state == "starting":
        late = now - slot.started > config.start_timeout
        return f"was not ready after {config.start_timeout:g} s" if late else None
    if slot.in_flight:
        limit = config.stall_timeout * (ANSWERS_FACTOR if slot.answers_only else 1)
        late = now - slot.alive_at > limit
        return f"made no token for {limit:g} s with requests in flight" if late else None
    limit = IDLE_FACTOR * config.stall_timeout
    if slot.shards and now - slot.alive_at > limit:
        return f"put no request in flight for {limit:g} s with {len(slot.shards)} shards to do"
    return None


def cannot_be_ended(slot: Slot, now: float) -> bool:
    """Whether an engine was told to end so long ago that it never will."""
    return slot.ending_since is not None and now - slot.ending_since > END_SECONDS
