"""What processes of this machine are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pools import FakeRun


def test_replicas_on_the_cpu_share_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all the cores each, their threads would wait for one another."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)))
    assert facts(tmp_path / "two", 2)["threads"] == "3"
    assert facts(tmp_path / "one", 1)["threads"] is None
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert facts(tmp_path / "told", 2)["threads"] == "5"


def facts(folder: Path, replicas: int) -> dict[str, object]:
    run = FakeRun.make(folder, ["prompt"] * 60, replicas=replicas)
    run.run()
    return run.pool.facts()
