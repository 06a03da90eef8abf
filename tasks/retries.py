"""How Prefect retries our tasks: with growing, jittered delays, and not what a retry cannot mend."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from tasks.errors import RunError


def retried(times: int, first_delay: float) -> dict[str, Any]:
    """Keyword arguments for `@task`: `times` retries, the first after about `first_delay` seconds."""
    return {
        "retries": times,
        "retry_delay_seconds": exponential_backoff(backoff_factor=first_delay),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": _may_be_mended,
    }


def _may_be_mended(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    try:
        state.result()
    except RunError:
        return False
    except Exception:
        return True
    return True
