"""A team's Prefect as infra/team.py starts it (PostgreSQL where it is installed), a worker, and a browser."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, Page, Route, sync_playwright

from infra import team as infra_team
from tests.conftest import ROOT
from tests.ports import free_port

SHOTS = ROOT / "build" / "ui"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Team:
    """A running server and worker. `ui` and `api` are URLs, `folder` is where all of it lies."""

    folder: Path
    api: str
    stack: ExitStack
    worker_pid: int = 0

    @property
    def ui(self) -> str:
        return self.api.removesuffix("/api") + "/v2"

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The API's answer."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, content, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def deployment(self, name: str) -> str:
        return str(self.call(f"/deployments/name/generate/{name}")["id"])

    def runs(self, deployment: str) -> list[Any]:
        """The deployment's flow runs that have begun, oldest first."""
        mine = {"deployments": {"id": {"any_": [deployment]}}, "sort": "START_TIME_ASC"}
        return [run for run in self.call("/flow_runs/filter", mine) if run["start_time"]]

    def drop_waiting(self, deployment: str) -> None:
        """Delete the deployment's runs that have not begun: they would take the pool's only place, one by one."""
        waiting = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"start_time": {"is_null_": True}}}
        for run in self.call("/flow_runs/filter", waiting):
            self.call(f"/flow_runs/{run['id']}", method="DELETE")

    def state(self, run: str) -> tuple[str, str]:
        """Name and message."""
        state = self.call(f"/flow_runs/{run}")["state"]
        return state["name"], state["message"] or ""

    def shard_states(self, run: str, count: int) -> list[str]:
        """The states of the run's shards, once the server has written them all."""
        mine = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"tags": {"all_": ["generate"]}}, "limit": 200}

        def ended() -> list[str]:
            states = [task["state_name"] for task in self.call("/task_runs/filter", mine)]
            return states if len(states) >= count and not {"Running", "Pending"} & set(states) else []

        return wait_for(ended, 60)

    def artifacts(self, run: str) -> dict[str, Any]:
        """The run's artifacts by key."""
        found = self.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {artifact["key"]: artifact for artifact in found}

    def start_worker(self) -> None:
        self.worker_pid = self.stack.enter_context(infra_team.worker(self.api, self.folder)).pid


@pytest.fixture(scope="module")
def configs(tiny_qwen3: Path) -> Iterator[Path]:
    """A folder with the run configs and datasets of the tests' deployments."""
    folder = Path(tempfile.mkdtemp(prefix="datagen-ui-"))
    folder.chmod(0o755)  # PostgreSQL's user must come through

    def config(name: str, prompts: list[str], **sections: dict[str, Any]) -> None:
        lines = [json.dumps({"prompt": prompt, "label": str(i)}) for i, prompt in enumerate(prompts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        made = {
            "model": {"source": str(tiny_qwen3)},
            "dataset": {"path": str(folder / f"{name}.jsonl"), "shard_size": 4},
            "output": {"path": str(folder / f"out-{name}"), "chunk_seconds": 0.5},
            **sections,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(made))

    questions = [f"What is {i} + {i}?" for i in range(60)]
    config(
        "real",
        questions[:24],
        sampling={"n": 1, "max_tokens": 24, "temperature": 1.0, "seed": 1},
        engine={"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16},
    )
    # Six shards are made at once; of the others only the first record, until there is a file `gate` in the output.
    # All fit in the engine: in whatever order the shards come, none waits for the gate that need not.
    held = [question if i < 24 or i % 4 == 0 else f"GATE {question}" for i, question in enumerate(questions)]
    config("slow", held, sampling={"n": 2}, engine={"max_num_seqs": 128})
    config("often", questions[:16])
    config("strict", [*questions[:19], "TOO LONG"], sampling={"n": 2})
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def team(configs: Path) -> Iterator[Team]:
    folder = configs / "team"
    with ExitStack() as stack:
        database = None
        if list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
            database = stack.enter_context(infra_team.postgresql(folder / "postgresql", free_port()))
        api = stack.enter_context(infra_team.server(folder, free_port(), database))
        infra_team.set_up(api, folder, str(_deployments(configs)))
        made = Team(folder, api, stack)
        made.start_worker()
        yield made


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise RuntimeError("chromium is needed: bash infra/test.sh installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with its module: Playwright holds the thread's event loop, and other tests may need one."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that reaches nothing but this machine."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(90_000)
    page.route("**/*", _only_here)
    yield page
    page.close()


def wait_for(look: Callable[[], Any], seconds: float = 300) -> Any:
    """What `look` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)
    return seen


def _deployments(configs: Path) -> Path:
    """The project's own prefect.yaml, with the tests' run configs as further deployments."""
    made = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text(encoding="utf-8"))
    (run,) = made["templates"].values()
    kept = [deployment for deployment in made["deployments"] if deployment["name"] in ("demo", "nightly")]
    for name in ("real", "slow", "often", "strict"):
        step = {"flows.run_configs.run_config": {"id": "config", "file": str(configs / f"{name}.yaml")}}
        entrypoint = run["entrypoint"] if name == "real" else "tests/fake_flow.py:generate"
        kept.append({**run, "name": name, "build": [step], "entrypoint": entrypoint})
        if name == "often":
            kept[-1]["schedules"] = [{"interval": 3, "active": False, "slug": "seconds"}]
    path = configs / "prefect.yaml"
    path.write_text(yaml.safe_dump({"name": "tests", "deployments": kept}))
    return path


def _only_here(route: Route) -> None:
    here = ("http://127.0.0.1", "file://", "data:", "blob:")
    route.continue_() if route.request.url.startswith(here) else route.abort()
