"""All that watches a run while its shards are made: GPU figures, news of the engines, the terminal, Prefect's UI."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from prefect import Task, tags
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings

from flows.live_view import LiveView
from flows.own_server import is_own
from flows.run_logs import logs_to
from tasks.engines.gpu_figures import GpuFigures
from tasks.engines.news import EngineNews
from tasks.engines.pool import PoolView
from tasks.progress import ProgressDisplay, RunProgress
from tasks.run_log import log
from tasks.shard_board import ShardBoard

LOOK_SECONDS = 1.0

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def known_by(model: str) -> Iterator[None]:
    """On a server, the flow run and its task runs carry the model's tag, and our log lines are the flow run's too."""
    tag = f"model:{model}"
    with contextlib.ExitStack() as stack:
        context = FlowRunContext.get()
        if context is not None and context.flow_run is not None and _has_server():
            stack.enter_context(tags(tag))
            stack.enter_context(logs_to(context.flow_run.id))
            with get_client(sync_client=True) as client:
                client.update_flow_run(context.flow_run.id, tags={*context.flow_run.tags, tag})
        yield


@contextlib.contextmanager
def watching(
    view: Callable[[], PoolView], progress: RunProgress, board: ShardBoard, gpus: GpuFigures, logs: Path
) -> Iterator[None]:
    """Watch until the block ends. Nothing in here can fail the run."""
    context = FlowRunContext.get()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_looking(view, gpus, EngineNews(logs)))
        if context is not None and context.flow_run is not None and _has_server():
            stack.enter_context(LiveView(context.flow_run.id, progress, view, board, gpus))
        if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
            stack.enter_context(ProgressDisplay(view, progress))
        yield


@contextlib.contextmanager
def _looking(view: Callable[[], PoolView], gpus: GpuFigures, news: EngineNews) -> Iterator[None]:
    ended = threading.Event()

    def look() -> None:
        engines = view().engines
        gpus.sample({engine.number for engine in engines if engine.state == "running" and engine.in_flight})
        news.look(engines)

    def run() -> None:
        while not ended.wait(LOOK_SECONDS):
            try:
                look()
            except Exception:
                log.exception("watching the engines failed, the run goes on")
                return

    thread = threading.Thread(target=run, name="watching", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def told(task: Task[P, R]) -> Task[P, R]:
    """The task; where nobody looks, without its tags.

    For a task run with tags Prefect asks its server for a place below the tags' limits, one run after the other: of a
    shard that is made at once this is two thirds of the time.
    """
    if _has_server():
        return task
    plain = task.with_options()
    plain.tags = set()
    return plain


def _has_server() -> bool:
    """A server that outlives the run; the one of this run alone has nobody who looks."""
    url = get_current_settings().api.url
    return url is not None and not is_own(url)
