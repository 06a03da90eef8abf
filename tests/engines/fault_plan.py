"""Schedules of faults for the simulation: drawn at random, the same from the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

IN_FLIGHT = [
    "kill", "cuda_error", "hang", "unending_hang", "nonsense", "flow_stopped", "flow_killed", "flow_killed_chunk_torn",
    "flow_killed_chunk_lost", "flow_killed_shard_edited", "flow_killed_shard_deleted",
]  # fmt: skip
ELSEWHERE = [
    "hang_prepare", "hang_read", "kill_before_chunk", "kill_after_chunk", "kill_in_finish", "no_space", "start_fails",
    "start_hangs", "start_out_of_memory",
]  # fmt: skip
KINDS = ["kill", "kill", *IN_FLIGHT, *ELSEWHERE]


@dataclass
class Fault:
    """`kind` happens to the engine that comes by after so many records are made in all."""

    kind: str
    after: int
    times: int = 1


@dataclass
class Plan:
    """A schedule of faults. `poison` maps records to `crash`, `error` or `hang`."""

    seed: int
    replicas: int
    n: int
    max_num_seqs: int
    faults: list[Fault]
    poison: dict[int, str] = field(default_factory=dict)

    @classmethod
    def draw(cls, seed: int, records: int) -> Plan:
        """The schedule of a seed."""
        dice = random.Random(seed)
        faults, after = [], 0
        for _ in range(dice.randint(1, 5)):
            after += dice.randint(4, records // 3)
            faults.append(Fault(dice.choice(KINDS), after, dice.randint(1, 3)))
        poison = {dice.randrange(records): dice.choice(["crash", "error", "hang"]) for _ in range(dice.randint(0, 2))}
        return cls(seed, dice.randint(1, 3), dice.randint(1, 3), dice.choice([1, 2, 4, 8, 16]), faults, poison)
