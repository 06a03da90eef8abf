"""What a Prefect server needs to know of us: the work pool, the automations for dead runs, and the deployments.

    PREFECT_API_URL=http://127.0.0.1:4200/api .venv/bin/python infra/prefect_setup.py [deployments/prefect.yaml]

Run it from the repository's root on the machine with the GPUs, again after each change of deployments/.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

POOL = "gpu"
RUNS_AT_ONCE = 1
"""Runs of the pool at a time: each takes all GPUs of its machine."""
SILENCE = timedelta(seconds=90)
"""Three heartbeats: a run that is silent for so long is dead."""
PATIENCE = timedelta(minutes=5)
"""A worker starts a run's process within seconds; Python's imports take the most of it."""
DEPLOYMENTS = "deployments/prefect.yaml"


async def set_up(client: PrefectClient) -> None:
    """Make the pool and the automations, or bring them up to date."""
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template, concurrency_limit=RUNS_AT_ONCE)
        await client.create_work_pool(pool)
    for automation in (dead_runs(), stuck_runs()):
        known = await client.read_automations_by_name(automation.name)
        if known:
            await client.update_automation(known[0].id, automation)
        else:
            await client.create_automation(automation)


def dead_runs(silence: timedelta = SILENCE) -> AutomationCore:
    """A run that is killed with its machine says nothing any more. Without this it would stay Running for ever."""
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}
    return _crash(
        "Crash runs that stopped sending heartbeats",
        {"prefect.flow-run.heartbeat"},
        {"prefect.flow-run.heartbeat"} | ended,
        silence,
        f"No heartbeat for {silence.seconds} s: the run's process is gone. What is finished is kept.",
    )


def stuck_runs(patience: timedelta = PATIENCE) -> AutomationCore:
    """A run whose worker was killed before it could start it sends no heartbeats yet, and holds a place of the pool."""
    return _crash(
        "Crash runs that their worker never started",
        {"prefect.flow-run.Pending", "prefect.flow-run.Submitting"},
        {"prefect.flow-run.*"},
        patience,
        f"Not started for {patience.seconds} s: the worker that had taken it is gone. Retry it.",
    )


def _crash(name: str, after: set[str], expect: set[str], within: timedelta, message: str) -> AutomationCore:
    """When none of the expected events follows in time, the run becomes Crashed."""
    return AutomationCore(
        name=name,
        trigger=EventTrigger(
            after=after,
            expect=expect,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


async def main(deployments: str) -> None:
    async with get_client() as client:
        await set_up(client)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    subprocess.run([*prefect, "deploy", "--all", "--prefect-file", deployments], check=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or [DEPLOYMENTS]))
