"""Runs as a person has them who never opens a terminal: a real server and worker, and clicks in a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from prefect.events.schemas.automations import AutomationCore

from infra.prefect_setup import dead_runs, stuck_runs
from tests.processes import engines_of
from tests.ui.conftest import SHOTS, Team, wait_for

pytestmark = pytest.mark.engine


def test_the_form_is_filled_in_and_the_run_watched_to_its_report(team: Team, page: Page, configs: Path) -> None:
    """On a real vLLM engine."""
    deployment = team.deployment("real")
    page.goto(f"{team.ui}/deployments/deployment/{deployment}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom Run").click()
    samples = page.get_by_label("Samples a record (n)")
    expect(samples).to_have_value("1")
    expect(page.get_by_label("Model").first).to_have_value(_config(configs, "real"))
    page.screenshot(path=SHOTS / "form.png", full_page=True)

    samples.fill("0")
    page.get_by_role("button", name="Submit").click()
    refused = samples.evaluate("field => field.validationMessage")
    assert "greater than or equal to 1" in refused
    assert not team.runs(deployment)

    samples.fill("2")
    page.get_by_role("button", name="Submit").click()
    expect(page).to_have_url(re.compile("tab=Runs"))
    run = wait_for(lambda: team.runs(deployment))[0]["id"]
    page.goto(f"{team.ui}/runs/flow-run/{run}")
    wait_for(lambda: "progress" in team.artifacts(run))
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_text("progress", exact=True)).to_be_visible()
    page.screenshot(path=SHOTS / "run-under-way.png")
    page.goto("about:blank")  # a browser that draws takes the engine's time
    wait_for(lambda: team.artifacts(run)["progress"]["data"])
    page.goto(f"{team.ui}/runs/flow-run/{run}")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=300_000)
    assert team.state(run)[0] == "Completed"

    rows = [json.loads(line) for line in (configs / "out-real/data.jsonl").read_text().splitlines()]
    assert [(row["original_index"], row["sample_id"]) for row in rows] == [(i, s) for i in range(24) for s in (0, 1)]
    flow_run = team.call(f"/flow_runs/{run}")
    assert flow_run["name"] == "tiny_qwen3 · real · n2"
    assert "model:tiny_qwen3" in flow_run["tags"]
    assert team.shard_states(run, 6) == ["Completed"] * 6
    _look_at_artifacts(team, page, run)
    _look_at_report(page, configs / "out-real/report.html")


def _look_at_artifacts(team: Team, page: Page, run: str) -> None:
    artifacts = team.artifacts(run)
    assert artifacts["progress"]["data"] == 100
    assert artifacts["progress"]["description"].startswith("100% · all made · 48 of 48 samples · 24 of 24 records")
    shards = json.loads(artifacts["shards"]["data"])
    assert [row["shard"] for row in shards] == [f"0000{i}" for i in range(6)]
    assert {(row["state"], row["samples"], row["engine"]) for row in shards} == {("finished", 8, "engine-0")}
    (engine,) = json.loads(artifacts["engines"]["data"])
    assert (engine["state"], engine["in flight"], engine["restarts"]) == ("ended", 0, 0)
    assert engine["tokens"] > 0
    for key, text in {"progress": "Progress: 100%", "shards": "00003", "validation": "max_error_rate"}.items():
        page.goto(f"{team.ui}/artifacts/artifact/{artifacts[key]['id']}")
        expect(page.get_by_text(text).first).to_be_visible()
        page.screenshot(path=SHOTS / f"artifact-{key}.png")
    page.goto(f"{team.ui}/artifacts/artifact/{artifacts['report']['id']}")
    expect(page.get_by_role("cell", name="Completion tokens")).to_be_visible()
    expect(page.locator("img[alt='Throughput']")).to_be_visible()
    page.screenshot(path=SHOTS / "artifact-report.png", full_page=True)
    page.goto(f"{team.ui}/runs/flow-run/{run}?tab=Artifacts")
    expect(page.get_by_text("100% · all made").first).to_be_visible()
    page.screenshot(path=SHOTS / "run.png")


def _look_at_report(page: Page, path: Path) -> None:
    page.goto(path.as_uri())
    expect(page.get_by_text("tiny_qwen3 on real")).to_be_visible()
    page.screenshot(path=SHOTS / "report.png")


def test_cancel_by_clicking_frees_the_engines_and_retry_resumes(team: Team, page: Page, configs: Path) -> None:
    output = configs / "out-slow"
    run = team.call(f"/deployments/{team.deployment('slow')}/create_flow_run", {})["id"]
    wait_for(lambda: len(_finished(output)) == 6 and list(output.glob("shards/*/*/chunk-*")))
    assert engines_of(output)
    _menu(team, page, run, "Cancel")
    page.get_by_role("button", name="Cancel Flow Run").click()
    clicked = time.monotonic()
    wait_for(lambda: not engines_of(output), 60)
    print(f"engines gone {time.monotonic() - clicked:.1f} s after the click")
    wait_for(lambda: team.state(run)[0] == "Cancelled", 90)
    print(f"Cancelled {time.monotonic() - clicked:.1f} s after the click")
    states = team.shard_states(run, 10)
    assert set(states) <= {"Completed", "Cancelled", "Crashed", "NotReady"}
    page.reload()
    page.get_by_role("tab", name="Task Runs").click()
    page.wait_for_timeout(1500)
    page.screenshot(path=SHOTS / "cancelled.png")
    assert len(_finished(output)) == 6

    (output / "gate").touch()
    _menu(team, page, run, "Retry")
    page.get_by_role("button", name="Retry").last.click()
    wait_for(lambda: team.state(run)[0] == "Completed", 180)
    manifests = [json.loads(path.read_text()) for path in _finished(output)]
    assert len(manifests) == 15
    assert any(manifest["resumed_samples"] for manifest in manifests)
    rows = [json.loads(line) for line in (output / "data.jsonl").read_text().splitlines()]
    assert [(row["original_index"], row["sample_id"]) for row in rows] == [(i, s) for i in range(60) for s in (0, 1)]
    table = json.loads(team.artifacts(run)["shards"]["data"])
    assert sum(row["state"] == "cached" for row in table) == 6
    page.goto(f"{team.ui}/runs/flow-run/{run}")
    page.wait_for_timeout(2500)
    page.screenshot(path=SHOTS / "retried.png")


def test_a_failed_gate_is_told_with_its_figure(team: Team, page: Page) -> None:
    run = team.call(f"/deployments/{team.deployment('strict')}/create_flow_run", {})["id"]
    wait_for(lambda: team.state(run)[0] == "Failed")
    told = "validation.max_error_rate: 2 of 40 samples are errors: see errors.jsonl, 5%, at most 0% may be"
    assert told in team.state(run)[1]
    page.goto(f"{team.ui}/runs/flow-run/{run}?tab=Details")
    expect(page.get_by_text(told).first).to_be_visible()
    page.screenshot(path=SHOTS / "failed-gate.png", full_page=True)
    gates = json.loads(team.artifacts(run)["validation"]["data"])
    assert gates[0]["passed"] == "no"
    assert "report" in team.artifacts(run)


def test_a_schedule_of_seconds_runs_again_without_overlap_and_all_cached(team: Team, configs: Path) -> None:
    deployment = team.deployment("often")
    schedule = team.call(f"/deployments/{deployment}")["schedules"][0]["id"]
    team.call(f"/deployments/{deployment}/schedules/{schedule}", {"active": True}, "PATCH")
    try:
        runs = wait_for(lambda: _completed(team, deployment, 2), 180)
    finally:
        team.call(f"/deployments/{deployment}/schedules/{schedule}", {"active": False}, "PATCH")
        team.drop_waiting(deployment)
    first, second = runs[:2]
    assert first["end_time"] <= second["start_time"]
    assert team.shard_states(first["id"], 4) == ["Completed"] * 4
    assert team.shard_states(second["id"], 4) == ["Cached"] * 4
    assert json.loads((configs / "out-often/manifest.json").read_text())["this_run"]["generated_tokens"] == 0


def test_a_run_that_is_killed_with_its_worker_does_not_stay_running(team: Team, configs: Path) -> None:
    """With less patience than infra/ has: 12 s, not three heartbeats or minutes."""
    _replace(team, dead_runs(timedelta(seconds=12)))
    output = configs / "out-killed"
    body = {"parameters": {"output": {"path": str(output), "chunk_seconds": 0.5}}}
    deployment = team.deployment("slow")
    run = team.call(f"/deployments/{deployment}/create_flow_run", body)["id"]
    engines = wait_for(lambda: engines_of(output))
    flow = int(Path(f"/proc/{engines[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(team.worker_pid, signal.SIGKILL)
    time.sleep(3)
    assert engines_of(output) == engines, "a run outlives its worker"
    assert team.state(run)[0] == "Running"
    os.kill(flow, signal.SIGKILL)
    _replace(team, stuck_runs(timedelta(seconds=12)))
    never_started = team.call(f"/deployments/{deployment}/create_flow_run", body)["id"]
    team.call(
        f"/flow_runs/{never_started}/set_state", {"state": {"type": "PENDING", "name": "Submitting"}, "force": True}
    )
    wait_for(lambda: not engines_of(output), 60)
    wait_for(lambda: team.state(run)[0] == "Crashed")
    assert "No heartbeat" in team.state(run)[1]
    wait_for(lambda: team.state(never_started)[0] == "Crashed")
    assert "Not started" in team.state(never_started)[1]


def _replace(team: Team, automation: AutomationCore) -> None:
    (known,) = team.call("/automations/filter", {"automations": {"name": {"any_": [automation.name]}}})
    team.call(f"/automations/{known['id']}", automation.model_dump(mode="json", exclude_unset=True), "PUT")


def _finished(output: Path) -> list[Path]:
    return list(output.glob("shards/*/*.manifest.json"))


def _menu(team: Team, page: Page, run: str, entry: str) -> None:
    page.goto(f"{team.ui}/runs/flow-run/{run}")
    page.locator("button[aria-haspopup=menu]").last.click()
    page.get_by_role("menuitem", name=entry, exact=True).click()


def _completed(team: Team, deployment: str, count: int) -> list[dict[str, str]]:
    done = [run for run in team.runs(deployment) if run["state_name"] == "Completed"]
    return done if len(done) >= count else []


def _config(configs: Path, name: str) -> str:
    import yaml

    return str(yaml.safe_load((configs / f"{name}.yaml").read_text())["model"]["source"])
