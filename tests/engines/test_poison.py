"""The cost of poison: one bad record among ten thousand, 512 in flight."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.fault_plan import Plan
from tests.engines.simulation import Simulation, simulated_time

RECORDS = 10_000


@pytest.mark.parametrize(("place", "kind"), [(0, "crash"), (5003, "error"), (9999, "crash")])
def test_a_bad_record_costs_at_most_twelve_restarts(tmp_path: Path, place: int, kind: str) -> None:
    plan = Plan(seed=3, replicas=1, n=1, max_num_seqs=256, faults=[], poison={place: kind})
    simulation = Simulation(tmp_path / "run", plan, RECORDS, 1024)
    with simulated_time(simulation):
        simulation.run()
    (error,) = simulation.rows(errors=True)
    assert (error["original_index"], error["error"]) == (place, "engine_crash")
    assert [row["original_index"] for row in simulation.rows()] == [i for i in range(RECORDS) if i != place]
    assert len(simulation.steps) <= 12
    assert simulation.world.twice == []
