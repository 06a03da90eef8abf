"""Our flow against datatrove, distilabel, curator and Ray Data LLM: the same machine, model, prompts and lengths.

Each peer runs in its own documented way, in a virtual environment of its own below build/peers, made at the first run.
Those that talk to an endpoint share one warm vLLM server, as our flow does in its row with `engine.kind: openai`. Time
runs from the first requests to the last token: starting engines, servers and pipelines is not in it. A peer that cannot
run is a row with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from tests.benchmarks._server import Server, running_server
from tests.benchmarks.harness import ROOT, Figures, Result
from tests.benchmarks.throughput import ENVIRONMENT, our_flow
from tests.benchmarks.workloads import WORKLOADS, Workload
from tests.models import cached

ENVIRONMENTS = ROOT / "build/peers"
SCRIPTS = Path(__file__).parent / "peer_scripts"
OURS, OURS_SERVED = "our flow", "our flow, engine.kind openai"
QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
TIMEOUT = 1200
SHARD_SIZE = 12


@dataclass(frozen=True)
class Peer:
    """What is installed for it, its script, and whether it generates in a process of its own."""

    script: str
    packages: tuple[str, ...]
    in_process: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    other_lengths: str = ""
    """Where it cannot make the same lengths: what it makes. It is no measure for us then."""


PEERS = {
    "datatrove": Peer("datatrove_runner.py", ("datatrove[io]==0.10.1", "httpx", "aiosqlite", "aiofiles")),
    "distilabel": Peer(
        "distilabel_pipeline.py",
        ("distilabel[openai]==1.5.3", "requests"),
        other_lengths="one length for all, the mean: no long tail",
    ),
    "curator": Peer(
        "curator_llm.py",
        ("bespokelabs-curator==0.1.31",),
        environment={"TELEMETRY_ENABLED": "0", "CURATOR_VIEWER": "0", "HOSTED_VLLM_API_KEY": "none"},
    ),
    "ray data llm": Peer("ray_data_llm.py", ("ray[data]>=2.50", "pandas"), True, ENVIRONMENT),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", choices=["mixed", "thinking"], default="mixed", help="the workload")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--model", help="folder of another model than the variant's")


def measure(options: argparse.Namespace) -> Result:
    workload = WORKLOADS[options.variant]
    model = options.model or str(cached(workload.model))
    apart = [name for name in options.peers if PEERS[name].in_process]
    served = [name for name in options.peers if not PEERS[name].in_process]
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        comparison = Comparison(workload, model, workload.write(Path(folder), options.records), options.n, Path(folder))
        rows = [side_row(OURS, "in process", comparison.our_flow)]
        rows += [side_row(name, "in process", partial(comparison.peer, name, None)) for name in apart]
        with running_server(model, workload, Path(folder, "server.log")) as server:
            rows.append(side_row(OURS_SERVED, "server", partial(comparison.our_flow_served, server)))
            rows += [side_row(name, "server", partial(comparison.peer, name, server)) for name in served]
    return _result(rows, options)


def _result(rows: list[Figures], options: argparse.Namespace) -> Result:
    notes = [
        f"{WORKLOADS[options.variant].about}; {options.records} records × {options.n} samples",
        "'server': all of these use one warm vLLM server (`vllm.entrypoints.openai.api_server`), one after the other",
    ]
    speeds = {row["side"]: row["tokens/s"] for row in rows if "tokens/s" in row}
    peers = {name: speed for name, speed in speeds.items() if name in PEERS and not PEERS[name].other_lengths}
    if OURS not in speeds or not peers:
        return Result(rows, notes=notes)
    best = max(peers, key=lambda name: peers[name])
    name = "our flow / best peer"
    figures = {name: round(speeds[OURS] / peers[best], 3), "best peer": best}
    return Result(rows, figures, {name: ">= 1.0"}, notes)


def side_row(side: str, engine: str, run: Callable[[], Figures]) -> Figures:
    """The side's speed, or the error that it ended with."""
    row: Figures = {"side": side, "engine": engine}
    try:
        made = run()
        print(f"{side}: {made}", file=sys.stderr, flush=True)  # the whole takes long
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"{side}: {error}", file=sys.stderr, flush=True)
        return row | {"note": f"cannot run: {' '.join(str(error).split())[-300:]}"}
    row |= {"tokens/s": round(made["tokens"] / made["seconds"], 1), "tokens": made["tokens"]}
    row["command s"] = round(made["command"], 1)
    return row | ({"note": PEERS[side].other_lengths} if side in PEERS and PEERS[side].other_lengths else {})


@dataclass(frozen=True)
class Comparison:
    """What all sides of it share."""

    workload: Workload
    model: str
    dataset: Path
    n: int
    folder: Path

    def our_flow(self) -> Figures:
        started = time.perf_counter()
        made = our_flow(self.workload, self.model, self.dataset, self.n, SHARD_SIZE, self.folder / "ours")
        return {**made, "command": time.perf_counter() - started}

    def our_flow_served(self, server: Server) -> Figures:
        served = {"kind": "openai", "base_urls": json.dumps([f"{server.url}/v1"])}
        with server.watched() as taken:
            our_flow(self.workload, self.model, self.dataset, self.n, SHARD_SIZE, self.folder / "served", **served)
        return taken

    def peer(self, name: str, server: Server | None) -> Figures:
        peer, folder = PEERS[name], self.folder / name.replace(" ", "-")
        python = environment(name, peer)
        folder.mkdir()
        spec = {
            "url": server.url if server else None,
            "model": self.model,
            "dataset": str(self.dataset),
            "n": self.n,
            "folder": str(folder),
            "ray_folder": str(self.folder / "r"),
            "max_model_len": self.workload.max_model_len,
            "engine": self.workload.engine,
        }
        command = [str(python), str(SCRIPTS / peer.script), json.dumps(spec)]
        if server is None:
            started = time.perf_counter()
            made: Figures = json.loads(_run(command, peer).splitlines()[-1])
            return {**made, "command": time.perf_counter() - started}
        with server.watched() as taken:
            _run(command, peer)
        return taken


def _run(command: list[str], peer: Peer) -> str:
    variables = {**os.environ, **QUIET, **peer.environment}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout)[-2000:])
    return done.stdout


def environment(name: str, peer: Peer) -> Path:
    """The Python of the peer's virtual environment, made where it is missing; in-process peers see our vLLM in it."""
    folder = ENVIRONMENTS / name.replace(" ", "-")
    python, done = folder / "bin/python", folder / "installed"
    if done.exists() and done.read_text() == " ".join(peer.packages):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    if peer.in_process:
        place = next(folder.glob("lib/python*/site-packages"))
        (place / "engine.pth").write_text(f"{here}\n")
        packages = [package for package in peer.packages if not (Path(here) / package.split("[")[0]).is_dir()]
        packages.append(f"numpy=={metadata.version('numpy')}")
    else:
        packages = list(peer.packages)
    install = [uv, "pip", "install", "-q", "--python", str(python), *packages]
    patient = {**os.environ, "UV_HTTP_TIMEOUT": "300"}
    made = subprocess.run(install, capture_output=True, text=True, check=False, env=patient)
    if made.returncode:
        raise RuntimeError(f"cannot be installed: {made.stderr[-1500:]}")
    done.write_text(" ".join(peer.packages))
    return python
