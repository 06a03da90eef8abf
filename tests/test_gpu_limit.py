"""GPUs taken through a global concurrency limit of a real Prefect server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.gpu_limit import gpu_limit
from tasks.errors import RunError


@pytest.fixture
def limit(prefect_api: str) -> Iterator[str]:
    """A limit of two GPUs."""
    name = f"gpu-{uuid4().hex[:6]}"
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=2))
        yield name


def active(name: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(name).active_slots


def test_a_run_holds_as_many_slots_as_it_has_gpus(limit: str, prefect_api: str) -> None:
    entered = threading.Event()

    def second() -> None:
        with temporary_settings({PREFECT_API_URL: prefect_api}), gpu_limit(limit, 1):
            entered.set()

    with gpu_limit(limit, 2):
        assert active(limit) == 2
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not entered.wait(2.0)
    assert entered.wait(60)
    waiting.join()
    assert active(limit) == 0


def test_a_limit_that_is_too_small_or_missing_fails_the_run(limit: str) -> None:
    with pytest.raises(RunError, match=r"needs 3 GPUs, more than the limit"), gpu_limit(limit, 3):
        pass
    with pytest.raises(RunError, match=r"no global concurrency limit 'nobody'.*prefect gcl create"), gpu_limit("nobody", 1):  # noqa: E501  # fmt: skip
        pass


def test_without_a_limit_or_a_gpu_nothing_is_asked() -> None:
    with gpu_limit(None, 8), gpu_limit("gpu", 0):
        pass
