"""How many threads engines on the CPU compute with, where they have its cores together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import GenerateConfig
from tasks.engines.base import EngineSpec
from tasks.engines.ray_actor import _environment
from tests.pools import FakeRun


def test_replicas_on_the_cpu_share_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all the cores each, their threads would wait for one another."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    assert facts(tmp_path / "two", 2)["threads"] == "3"
    assert facts(tmp_path / "one", 1)["threads"] is None
    assert facts(tmp_path / "parallel", 1, tensor_parallel_size=3)["threads"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert facts(tmp_path / "told", 2)["threads"] == "5"


def test_an_engine_on_ray_computes_with_the_cores_of_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the one thread that Ray tells its actors."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert _environment(spec(), 3)["OMP_NUM_THREADS"] == "3"
    assert _environment(spec(tensor_parallel_size=2), 4)["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in _environment(spec(), 0)


def spec(**engine: int) -> EngineSpec:
    sections = {"model": {"source": "m"}, "dataset": {"path": "d"}, "output": {"path": "o"}, "engine": engine}
    return EngineSpec(number=0, config=GenerateConfig.model_validate(sections), model_path="", key="key")


def facts(folder: Path, replicas: int, **engine: int) -> dict[str, object]:
    run = FakeRun.make(folder, ["prompt"] * 60, replicas=replicas, engine=engine)
    run.run()
    return run.pool.facts()
