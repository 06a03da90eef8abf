"""What a shard costs Prefect's server and database, on SQLite and PostgreSQL, and how long its page takes to show.

Engines answer at once, everything else is real: a server of its own for each database, the flow, its artifacts. A
screenshot of each run's page is kept in build/benchmarks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra import team as infra_team
from tests.benchmarks.harness import RESULTS, Figures, Result
from tests.benchmarks.orchestration import run_flow
from tests.ports import free_port
from tests.ui.conftest import Team, open_browser, wait_for

SETTLE_SECONDS = 5.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])


def measure(options: argparse.Namespace) -> Result:
    rows = [_measure(database, options.shards) for database in options.databases]
    figures = {f"bytes a shard, {row['database']}": row["database bytes a shard"] for row in rows}
    notes = ["'written s': seconds after the run's end until the server has stored all task runs"]
    return Result(rows, figures, notes=notes)


def _measure(database: str, shards: int) -> Figures:
    with _folder() as folder, ExitStack() as stack:
        url = None
        if database == "postgresql":
            url = stack.enter_context(infra_team.postgresql(folder / "postgresql", free_port()))
        api = stack.enter_context(infra_team.server(folder, free_port(), url))
        team = Team(folder, api, stack)
        environment = {**os.environ, "PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "client")}
        run_flow(folder / "warm-up", 1, environment)
        before = _settled_bytes(folder, url)
        row = run_flow(folder / "run", shards, environment)
        ended = time.perf_counter()
        wait_for(lambda: _stored(team) >= shards + 1, 900)  # and the warm-up's
        written = time.perf_counter() - ended
        size = _settled_bytes(folder, url) - before
        told = f"{database}: {row['ms a shard']} ms and {size / shards:,.0f} bytes of database a shard"
        print(f"{told}; written after {written:.1f} s", file=sys.stderr, flush=True)
        page = _look(team, f"prefect-cost-{database}.png")
    return {
        "database": database,
        "shards": shards,
        "ms a shard": row["ms a shard"],
        "flow s": row["flow s"],
        "written s": round(written, 1),
        "database bytes a shard": round(size / shards),
        "page shows s": page,
    }


def _stored(team: Team) -> int:
    ended = {"task_runs": {"tags": {"all_": ["generate"]}, "state": {"type": {"any_": ["COMPLETED"]}}}}
    return int(team.call("/task_runs/count", ended))


def _settled_bytes(folder: Path, url: str | None) -> int:
    time.sleep(SETTLE_SECONDS)
    if url is None:
        with sqlite3.connect(folder / "prefect/prefect.db", timeout=60) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return (folder / "prefect/prefect.db").stat().st_size
    return asyncio.run(_postgresql_bytes(url.replace("+asyncpg", "")))


async def _postgresql_bytes(url: str) -> int:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("select pg_database_size('prefect')"))
    finally:
        await connection.close()


def _look(team: Team, shot: str) -> float:
    """Seconds until the page of the last run shows its first task runs."""
    latest = team.call("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        started = time.perf_counter()
        page.goto(f"{team.ui}/runs/flow-run/{latest}?tab=TaskRuns")
        page.get_by_text("generate_shard-").first.wait_for(timeout=120_000)
        shown = time.perf_counter() - started
        page.wait_for_timeout(5000)
        page.screenshot(path=RESULTS / shot, timeout=180_000)  # without a GPU, a graph of 1,000 tasks takes its time
    return round(shown, 1)


@contextmanager
def _folder() -> Iterator[Path]:
    """One that PostgreSQL's own user may enter."""
    with tempfile.TemporaryDirectory(prefix="datagen-cost-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
