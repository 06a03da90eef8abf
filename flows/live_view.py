"""The run as Prefect's UI shows it live: a progress bar, tables of engines and shards, and what the watchdog did.

The artifacts are made once and then changed in place. One thread does all of it, and gives at most a twentieth of its
time to it: where the server is slow or the tables are long, they are renewed less often. A server that does not answer
stops the pictures, never the run.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any
from uuid import UUID

import orjson
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from tasks.engines.gpu_figures import GpuFigures
from tasks.engines.pool import EngineView, PoolView
from tasks.progress import RunProgress
from tasks.run_log import log
from tasks.shard_board import ShardBoard

LEAST_SECONDS = 4.0
SHARE_OF_TIME = 0.05
END_SECONDS = 10.0


class LiveView:
    """Shows a run in the artifacts of its flow run until the block ends."""

    def __init__(
        self,
        flow_run_id: UUID,
        progress: RunProgress,
        view: Callable[[], PoolView],
        board: ShardBoard,
        gpus: GpuFigures,
    ) -> None:
        self._flow_run_id = flow_run_id
        self._progress = progress
        self._view = view
        self._board = board
        self._gpus = gpus
        self._shown: dict[str, bytes] = {}
        self._ids: dict[str, UUID] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-view", daemon=True)

    def __enter__(self) -> LiveView:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        try:
            with get_client(sync_client=True) as client:
                self._find_artifacts(client)
                pause = 0.0
                while not self._ended.wait(pause):
                    started = time.monotonic()
                    self._show(client, self._view())
                    pause = max(LEAST_SECONDS, (time.monotonic() - started) / SHARE_OF_TIME)
                self._show(client, _at_the_end(self._view()))
        except Exception as error:
            log.warning("the live view stopped, the run goes on: %s: %s", type(error).__name__, error)

    def _show(self, client: SyncPrefectClient, view: PoolView) -> None:
        self._put(client, "progress", "progress", self._progress.percent(view), self._progress.sentence(view))
        engines = [self._engine_row(engine) for engine in view.engines]
        self._put(client, "engines", "table", _json(engines), _engines_sentence(view))
        self._board.under_way(view.shards)
        self._put(client, "shards", "table", _json(self._board.table()), self._board.sentence())
        if view.steps:
            steps = [{"step": number, "what": step} for number, step in enumerate(view.steps, 1)]
            self._put(client, "watchdog", "table", _json(steps), "Engines that ended or hung, and what was done")

    def _engine_row(self, engine: EngineView) -> dict[str, Any]:
        row = {
            "engine": engine.number,
            "state": engine.state,
            "tokens/s": round(engine.tokens_per_second, 1),
            "tokens": engine.tokens,
            "in flight": engine.in_flight,
            "shards": engine.shards,
            "KV cache": f"{engine.kv_cache_usage:.0%}",
            "restarts": engine.restarts,
        }
        if gpus := self._gpus.of(engine.number):
            words = [gpu.words() for gpu in gpus]
            row["GPU"] = ", ".join(gpu.id for gpu in gpus)
            row["GPU memory"] = ", ".join(memory for memory, _ in words)
            row["utilisation"] = ", ".join(load for _, load in words)
        return row

    def _find_artifacts(self, client: SyncPrefectClient) -> None:
        """Those of an earlier try of the same flow run go on being used."""
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run_id]))
        found = client.read_artifacts(artifact_filter=mine)
        self._ids = {artifact.key: artifact.id for artifact in found if artifact.key and not artifact.task_run_id}

    def _put(self, client: SyncPrefectClient, key: str, kind: str, data: Any, description: str) -> None:
        """Make the artifact or change it in place; nothing is sent where nothing has changed."""
        content = orjson.dumps([data, description])
        if self._shown.get(key) == content:
            return
        if key in self._ids:
            # Not client.update_artifact: it would leave an event in the server's database each time.
            body = {"data": data, "description": description}
            client.request("PATCH", "/artifacts/{id}", path_params={"id": self._ids[key]}, json=body)
        else:
            made = ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self._flow_run_id)
            self._ids[key] = client.create_artifact(made).id
        self._shown[key] = content


_END = {"waiting": "not needed", "given up": "given up"}
_NOTHING: dict[str, Any] = {"in_flight": 0, "tokens_per_second": 0.0}


def _at_the_end(view: PoolView) -> PoolView:
    """Nothing is in flight any more, though the engines may still be there."""
    ended = [replace(engine, state=_END.get(engine.state, "ended"), **_NOTHING) for engine in view.engines]
    return replace(view, engines=ended, shards={})


def _engines_sentence(view: PoolView) -> str:
    speed = sum(engine.tokens_per_second for engine in view.engines)
    states = Counter(engine.state for engine in view.engines)
    words = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none yet"
    pace = f" · {speed:,.0f} tokens/s" if speed else ""
    return f"{words}{pace} · {sum(engine.tokens for engine in view.engines):,} tokens by this run"


def _json(rows: list[dict[str, Any]]) -> str:
    return orjson.dumps(rows).decode()
