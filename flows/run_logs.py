"""Under a Prefect server, the run's own log lines go to the flow run's logs."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from uuid import UUID

from prefect.logging.handlers import APILogHandler

from tasks.run_log import log


@contextlib.contextmanager
def logs_to(flow_run_id: UUID) -> Iterator[None]:
    """What is logged in any thread until the block ends is also the flow run's."""
    handler = _ToFlowRun(flow_run_id)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _ToFlowRun(logging.Handler):
    def __init__(self, flow_run_id: UUID) -> None:
        super().__init__()
        self._flow_run_id = str(flow_run_id)
        self._api = APILogHandler()

    def emit(self, record: logging.LogRecord) -> None:
        """A copy: the record itself goes on to handlers that know no flow run."""
        mine = copy.copy(record)
        mine.flow_run_id = self._flow_run_id
        self._api.handle(mine)
