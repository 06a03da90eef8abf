"""Random schedules of faults: after each the dataset is complete, no row twice, and as if nothing had happened.

A failure names its seed: `Plan.draw(SEED, RECORDS)` is the schedule.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.engines.fault_plan import Plan
from tests.engines.simulation import Simulation, simulated_time

RECORDS = 40
SHARD_SIZE = 12
SCHEDULES = 210


@cache
def undisturbed(n: int) -> list[dict[str, Any]]:
    """The rows of a run in which nothing happens."""
    with TemporaryDirectory() as folder:
        return run(Path(folder), Plan(0, 1, n, 4, [])).rows()


def run(folder: Path, plan: Plan) -> Simulation:
    simulation = Simulation(folder / "run", plan, RECORDS, SHARD_SIZE)
    with simulated_time(simulation):
        simulation.run()
    return simulation


@pytest.mark.parametrize("seeds", [range(start, start + 30) for start in range(0, SCHEDULES, 30)], ids=str)
def test_nothing_is_lost_and_nothing_is_twice(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        plan = Plan.draw(seed, RECORDS)
        try:
            check(plan, run(tmp_path / str(seed), plan))
        except BaseException as error:
            error.add_note(f"seed {seed}: {plan}")
            raise


def check(plan: Plan, made: Simulation) -> None:
    wanted = [row for row in undisturbed(plan.n) if row["original_index"] not in plan.poison]
    assert made.rows() == wanted, made.steps
    errors = made.rows(errors=True)
    assert [(row["original_index"], row["sample_id"]) for row in errors] == [
        (index, sample) for index in sorted(plan.poison) for sample in range(plan.n)
    ], made.steps
    assert {row["error"] for row in errors} <= {"engine_crash", "engine_stall"}
    assert not made.world.twice
