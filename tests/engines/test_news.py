from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tasks.engines import news
from tasks.engines.news import EngineNews
from tasks.engines.pool import EngineView


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "datagen")


def test_the_start_up_passes_by_and_warnings_while_running_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "engine-0.log"
    log.write_text("ERROR 11-24 10:00:00 [old.py:1] of an earlier run\n")
    watch = EngineNews(tmp_path)
    watch.look([EngineView(0, state="starting")])
    _append(log, "WARNING 11-25 09:00:00 [config.py:5] start-up chatter\n")
    watch.look([EngineView(0, state="starting")])
    watch.look([EngineView(0, state="running")])
    _append(
        log, "INFO 11-25 09:00:01 [loggers.py:1] throughput\n(EngineCore pid=7) WARNING 11-25 09:00:02 [a.py:3] low"
    )
    watch.look([EngineView(0, state="running")])
    _append(log, " memory\nWARNING 11-25 09:00:03 [a.py:3] low memory\n")
    watch.look([EngineView(0, state="running")])
    assert [record.getMessage() for record in caplog.records] == [
        "engine 0 is starting",
        "engine 0 is ready, after 0 s",
        "engine 0: [a.py:3] low memory",
    ]


def test_a_flood_of_warnings_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = EngineNews(tmp_path)
    for state in ("starting", "running"):
        watch.look([EngineView(0, state=state)])
    _append(tmp_path / "engine-0.log", "".join(f"ERROR 11-25 09:00:02 [a.py:3] broken {i}\n" for i in range(5000)))
    watch.look([EngineView(0, state="running")])
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == news.LINES_A_MINUTE
    assert "engine-0.log" in caplog.records[-1].getMessage()


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
