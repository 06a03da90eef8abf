"""What a run says of shards that are missing at its end."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.states import Completed, Failed

from flows.generate import _require_all
from tasks.engines.pool import ShardFailedError
from tasks.errors import RunError
from tests.shards import dataset_of


class Ended:
    """A task's future."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self.state = Failed() if error else Completed()

    def result(self, raise_on_failure: bool) -> Any:
        return self._error


def test_all_is_there() -> None:
    _require_all(dataset_of(20, 10).shards, [Ended(None), Ended(None)])  # type: ignore[list-item]


def test_what_is_missing_and_why() -> None:
    """The shards by name, how many records that is, and each reason once with its count; the long list is cut."""
    shards = dataset_of(120, 10).shards
    errors = [None, ShardFailedError("disk full"), *[ShardFailedError("no engine is left")] * 10]
    with pytest.raises(RunError) as raised:
        _require_all(shards, [Ended(error) for error in errors])  # type: ignore[misc]
    told = str(raised.value)
    assert told.startswith("11 of 12 shards are not finished (00001, 00002, ")
    assert "00008, …; 110 records)" in told
    assert "no engine is left (10 shards); disk full (1 shards)" in told
    assert told.endswith("run again or retry to make the rest")
