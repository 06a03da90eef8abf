"""GPUs that flow runs share, taken through a global concurrency limit of Prefect: by their number, before any starts.

The limit counts and does not choose; which GPUs they are is settled on the machine (tasks/engines/gpu_locks.py) or by
Ray. The lease is renewed while the run lives; of a run that was killed it ends by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prefect.concurrency.sync import concurrency
from prefect.exceptions import PrefectHTTPStatusError

from tasks.errors import RunError
from tasks.run_log import log

LEASE_SECONDS = 60.0


@contextlib.contextmanager
def gpu_limit(name: str | None, gpus: int) -> Iterator[None]:
    """Hold so many slots of the limit, waiting for them as long as it takes; nothing without a name or a GPU.

    Raises RunError where there is no such limit, or one that is too small.
    """
    if name is None or not gpus:
        yield
        return
    log.info("taking %d GPUs of Prefect's limit '%s'", gpus, name)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(
                concurrency(name, gpus, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False)
            )
        except Exception as error:
            raise _explained(error, name, gpus) from error
        yield


def _explained(error: Exception, name: str, gpus: int) -> Exception:
    status = error if isinstance(error, PrefectHTTPStatusError) else error.__cause__
    text = f"{error} {status}"
    if "greater than the limit" in text or getattr(getattr(status, "response", None), "status_code", 0) == 422:
        return RunError(f"engine.gpu_limit: the run needs {gpus} GPUs, more than the limit '{name}' has in all")
    if type(error).__name__ == "ConcurrencySlotAcquisitionError":
        return RunError(
            f"engine.gpu_limit: Prefect has no global concurrency limit '{name}': "
            f"prefect gcl create {name} --limit GPUS ({error})"
        )
    return error
