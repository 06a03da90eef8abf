"""What is done about an engine that died: whom to blame, with which settings to go on, or whether to give it up."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.config import EngineConfig
from tasks.engines.gentler import gentler, is_out_of_memory
from tasks.engines.hunt import Hunts
from tasks.engines.slot import Slot
from tasks.records import Json

MAX_FAILURES = 3
"""Deaths in a row, no record finished in between, after which an engine's GPUs are given up."""
MAX_FIRST_FAILURES = 2
"""The same of an engine that never started: most likely the settings are wrong."""
MAX_BARREN = 5
"""Culprits in a row, no record finished in between, after which the engine is to blame and not the records."""
MAX_FRUITLESS = 2
"""Crashes that no single record was to blame for, after which the load is, and gentler settings help."""
MAX_RESTARTS = 100
"""Restarts since the engine last finished a shard."""

_WRONG_SETTINGS = ("RunError", "ValueError", "TypeError", "ValidationError", "NotImplementedError", "FileNotFoundError",
                   "ImportError", "ModuleNotFoundError", "AttributeError", "KeyError")  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What follows a death; `step` tells it in words, for the log, the manifest and the artifact."""

    give_up: bool
    delay: float
    step: str


def judge(slot: Slot, in_flight: set[int], was_starting: bool, hunts: Hunts, config: EngineConfig) -> Verdict:
    """Look at a death. Sets the slot's counts and settings, and lets the suspects wait for the engine that goes on."""
    words = [f"engine {slot.view.number} ended: {slot.last_words}"]
    kind = "engine_stall" if slot.ending else "engine_crash"
    if in_flight and not slot.hunt:
        slot.usual = slot.overrides
    culprit = hunts.died(slot.hunt, in_flight, slot.shards.values(), kind)
    eased = False
    if culprit is not None:
        slot.barren += 1
        slot.overrides = slot.usual
        words.append(f"record {culprit} is to blame and becomes an {kind} error row")
    elif in_flight:
        words.append(f"going on with at most {max(1, len(in_flight) // 2)} records at once")
    if culprit is None:
        eased = _ease(slot, was_starting, config)
    slot.failures += not in_flight and not eased
    if slot.overrides:
        words.append("with " + ", ".join(f"{name} {value}" for name, value in slot.overrides.items()))
    delay = 0.0 if in_flight or eased else min(30.0, 2.0 ** (slot.failures - 1))
    return Verdict(_hopeless(slot, was_starting), delay, "; ".join(words))


def _ease(slot: Slot, was_starting: bool, config: EngineConfig) -> bool:
    """Take gentler settings where they may help; whether that is a change that costs no failure."""
    memory = is_out_of_memory(slot.last_words)
    before = slot.overrides
    if slot.ending or memory or slot.fruitless >= MAX_FRUITLESS:
        slot.fruitless = 0
        slot.overrides = _without(gentler(before, slot.facts, config, slot.last_words), slot.keep)
        if slot.ending and was_starting:
            slot.overrides |= {"enforce_eager": True}  # compiling and capturing are what hangs in a start
    elif was_starting and before:
        # vLLM refuses the gentler settings themselves: some models need so many tokens a step.
        refused = {"max_num_batched_tokens"} if "max_num_batched_tokens" in before else set(before)
        slot.keep |= refused
        slot.overrides = _without(before, refused)
        return True
    return memory and slot.overrides != before


def _without(overrides: Json, names: set[str]) -> Json:
    return {name: value for name, value in overrides.items() if name not in names}


def _hopeless(slot: Slot, was_starting: bool) -> bool:
    never_ready = not slot.facts
    if was_starting and never_ready and not slot.overrides and slot.last_words.startswith(_WRONG_SETTINGS):
        return True
    return (
        slot.failures >= (MAX_FIRST_FAILURES if never_ready else MAX_FAILURES)
        or slot.barren >= MAX_BARREN
        or slot.restarts >= MAX_RESTARTS
    )
