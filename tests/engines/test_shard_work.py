"""When a shard's tokens were made, as its manifest tells."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tasks.engines.shard_work import spans_of
from tasks.shard_store import Row
from tests.pools import FakeRun


def row(began: float, ended: float, tokens: int) -> Row:
    return Row("", {"predict": "", "completion_tokens": tokens}, 0, began, ended)


def test_tokens_are_spread_over_the_time_in_which_they_were_made() -> None:
    """Not over that since the last checkpoint: long completions that end together would look like a burst."""
    long, short = [row(0.0, 600.0, 1000), row(100.0, 640.0, 3000)], [row(590.0, 593.0, 10)]
    first, second = spans_of([*long, *short], "engine-3")
    assert (first.engine, first.completion_tokens, second.completion_tokens) == ("engine-3", 4000, 10)
    assert first.start == pytest.approx(75.0)
    assert first.start + first.seconds == pytest.approx(630.0)
    assert (second.start, second.seconds) == pytest.approx((590.0, 3.0))


def test_errors_and_empty_completions_took_no_time() -> None:
    assert not list(spans_of([Row("", {"error": "image_not_found"}), row(1.0, 2.0, 0)], "engine-0"))


def test_a_manifest_tells_when_each_token_was_made(tmp_path: Path) -> None:
    began = time.time()
    (manifest,) = FakeRun.make(tmp_path, ["prompt"] * 20, engine={"extra": {"delay": 0.1}}).run()
    assert sum(span.completion_tokens for span in manifest.timeline) == manifest.tally.completion_tokens > 0
    assert all(span.start >= began for span in manifest.timeline)
    assert all(0.05 < span.seconds < time.time() - began for span in manifest.timeline)
