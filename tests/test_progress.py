from __future__ import annotations

import pytest

from tasks import progress
from tasks.engines.pool import EngineView, PoolView
from tasks.progress import RunProgress


def test_the_sentence_counts_what_was_made_before() -> None:
    view = PoolView([EngineView(0, tokens=10, tokens_per_second=123.4)], samples=50, errors=10)
    run = RunProgress(total=400, done=100, n=4)
    run.eta(view)
    words = run.sentence(view).split(" · ")
    assert words[0] == "40%"
    assert words[2:] == [
        "160 of 400 samples",
        "40 of 100 records",
        "10 errors",
        "123 tokens/s",
        "100 samples were there before",
    ]
    assert RunProgress(total=400, done=100, n=4).percent(view) == 40.0


def test_the_time_left_does_not_count_the_engines_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    run = RunProgress(total=100, done=0, n=1)
    now = 600.0
    assert run.eta(PoolView([EngineView(0, state="starting")])) == "starting"
    run.eta(PoolView([EngineView(0, tokens=1)]))
    now = 610.0
    assert run.eta(PoolView([EngineView(0, tokens=500)], samples=50)) == "about 10 s left"
    assert run.eta(PoolView([EngineView(0, tokens=500)], samples=100)) == "all made"
    resumed = PoolView([EngineView(0, tokens=500)], samples=50, resumed=50)
    assert (run.eta(resumed), run.percent(resumed)) == ("all made", 100.0)
