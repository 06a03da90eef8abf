"""What must hold on a real GPU: every family generates, kills free the memory, hangs and full memory are got over.

Each line is a run of the whole flow. Models are in full size with random weights (tests.benchmarks.full_size), and
`--real-model` names a folder with real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.full_size import MODELS
from tests.benchmarks.harness import ROOT, Figures, Result

FREE_MB = 2000
"""A GPU with less in use than this is taken for free."""
CO_TENANT_GB = 20
IN_WAVES = {"enforce_eager": True, "max_num_seqs": 64}
"""So that some samples are finished while others are under way."""


@dataclass
class Bench:
    """Where the runs of this benchmark lie, and on which GPU they run."""

    folder: Path
    gpu: int
    records: int
    real_model: str | None
    rows: list[Figures] = field(default_factory=list)

    def config(self, model: str, name: str, **sections: Any) -> tuple[Path, Path]:
        """A run config in YAML for a full-size model (or a folder), and its output folder."""
        folder = MODELS[model](self.folder / "models" / model) if model in MODELS else Path(model)
        out = self.folder / name
        engine = {"max_model_len": 4096, **sections.pop("engine", {})}
        if model in MODELS:
            engine["extra"] = {"load_format": "dummy"}
        config: dict[str, Any] = {
            "model": {"source": str(folder)},
            "dataset": {"path": str(sections.pop("dataset", None) or self.prompts()), "shard_size": 16},
            "sampling": {"n": 2, "max_tokens": 256, "ignore_eos": True, **sections.pop("sampling", {})},
            "output": {"path": str(out), "chunk_seconds": 1},
            "engine": engine,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path, out

    def prompts(self) -> Path:
        path = self.folder / "prompts.jsonl"
        lines = (json.dumps({"prompt": f"Tell me about the number {i}."}) for i in range(self.records))
        path.write_text("\n".join(lines))
        return path

    def photos(self) -> Path:
        """Records with one or two real photographs, copied beside them."""
        import skimage.data
        from PIL import Image

        names = ["astronaut", "coffee", "chelsea", "rocket"]
        path = self.folder / "photos.jsonl"
        for name in names:
            Image.fromarray(getattr(skimage.data, name)()).save(self.folder / f"{name}.jpg")
        records = (
            {"prompt": "What is this?", "images": [f"{names[i % 4]}.jpg", f"{names[i // 4 % 4]}.jpg"][: 1 + i % 2]}
            for i in range(self.records)
        )
        path.write_text("\n".join(map(json.dumps, records)))
        return path

    def start(self, config: Path) -> subprocess.Popen[bytes]:
        """The flow, as a user starts it; what it says goes to a file beside its config."""
        with config.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "flows/generate.py", "--config", str(config)], cwd=ROOT, stdout=log, stderr=log,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": str(self.gpu), "PYTHONPATH": _python_path()},
            )  # fmt: skip

    def run(self, config: Path) -> int:
        return self.start(config).wait()

    def used_mb(self) -> int:
        query = ["nvidia-smi", f"--id={self.gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--records", type=int, default=192)
    parser.add_argument("--real-model", help="folder of a model with real weights")
    parser.add_argument("--proofs", nargs="+", choices=PROOFS, default=list(PROOFS))


def measure(options: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.gpu, options.records, options.real_model)
        for name in options.proofs:
            began = time.perf_counter()
            try:
                facts = PROOFS[name](bench)
            except Exception as error:
                facts = {"holds": False, "what": f"{type(error).__name__}: {error}"}
            row = {"proof": name, "seconds": round(time.perf_counter() - began, 1), **facts}
            bench.rows.append({key: row.get(key, "") for key in ("proof", "holds", "seconds", "what")})
            print(json.dumps(row), file=sys.stderr, flush=True)
    return Result(bench.rows, {"proofs that hold": sum(row["holds"] is True for row in bench.rows)})


def real_text(bench: Bench) -> Figures:
    """A real model's answers."""
    if bench.real_model is None:
        return {"holds": "not tried", "what": "no --real-model"}
    config, out = bench.config(
        bench.real_model, "real", dataset=ROOT / "deployments/demo.jsonl", engine={"max_model_len": 2048},
        sampling={"ignore_eos": False, "temperature": 0.0, "n": 1},
    )  # fmt: skip
    status = bench.run(config)
    return _told(bench, config, status, out) | {"sample": _rows(out)[0]["predict"][:200] if not status else ""}


def family(model: str, **sections: Any) -> Callable[[Bench], Figures]:
    """The whole flow on one full-size model."""

    def prove(bench: Bench) -> Figures:
        dataset = bench.photos() if "vl" in model else None
        config, out = bench.config(model, model, dataset=dataset, **sections)
        return _told(bench, config, bench.run(config), out)

    return prove


def kill_9(bench: Bench) -> Figures:
    """kill -9 of the flow while it generates: the memory is free within seconds, and the same command goes on."""
    config, out = bench.config("qwen3-8b", "kill", engine=IN_WAVES, sampling={"max_tokens": 1024})
    process = bench.start(config)
    _wait(lambda: any(out.glob("shards/*/*/chunk-*")) or any(out.glob("shards/*/*.manifest.json")), 300)
    held = bench.used_mb()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = time.perf_counter()
    _wait(lambda: bench.used_mb() < FREE_MB, 60)
    free_after = round(time.perf_counter() - killed, 1)
    told = _told(bench, config, bench.run(config), out)
    told["holds"] = told["holds"] is True and free_after <= 15
    return told | {"what": f"{held} MB free again after {free_after} s; {told['what']}"}


def stopped_core(bench: Bench) -> Figures:
    """SIGSTOP of the engine core: the watchdog ends it, and the run completes."""
    engine = {**IN_WAVES, "stall_timeout": 15}
    config, out = bench.config("qwen3-8b", "stop", engine=engine, sampling={"max_tokens": 1024})
    process = bench.start(config)
    _wait(lambda: any(out.glob("shards/*/*/chunk-*")) or any(out.glob("shards/*/*.manifest.json")), 300)
    core = _engine_core(process.pid)
    os.kill(core, signal.SIGSTOP)
    told = _told(bench, config, process.wait(), out)
    told["holds"] = told["holds"] is True and bool(told["steps"])
    return told


def full_memory(bench: Bench) -> Figures:
    """Another process holds 20 GB and gpu_memory_utilization asks for 0.99: gentler settings, told, complete."""
    engine = {"enforce_eager": True, "gpu_memory_utilization": 0.99}
    config, out = bench.config("qwen3-8b", "memory", engine=engine)
    with _co_tenant(bench.gpu):
        told = _told(bench, config, bench.run(config), out)
    told["holds"] = told["holds"] is True and bool(told["steps"])
    return told


PROOFS: dict[str, Callable[[Bench], Figures]] = {
    "real text": real_text,
    "qwen3-8b": family("qwen3-8b", engine={"enforce_eager": True}),
    "qwen2.5-vl-7b": family("qwen2.5-vl-7b", engine={"enforce_eager": True}),
    "gpt-oss-20b": family("gpt-oss-20b", engine={"enforce_eager": True}, sampling={"ignore_eos": False}),
    "kill -9 of the flow": kill_9,
    "SIGSTOP of the engine core": stopped_core,
    "full memory at start": full_memory,
}


def _told(bench: Bench, config: Path, status: int, out: Path) -> Figures:
    """What the run's manifest says, or the end of what the run said."""
    if status not in (0, 1) or not (out / "manifest.json").exists():
        said = config.with_suffix(".log").read_text()[-1500:]
        return {"holds": False, "what": f"exit status {status}", "said": said, "steps": [], "logs": _log_ends(out)}
    manifest = json.loads((out / "manifest.json").read_text())
    run = manifest["this_run"]
    samples = manifest["samples"] + manifest["errors"]
    what = f"{manifest['samples']} samples, {manifest['errors']} errors, {run['tokens_per_second']:.0f} tokens/s"
    return {
        "holds": status == 0 and manifest["errors"] == 0 and samples > 0,
        "what": what + (f"; {len(run['steps'])} steps, last: {run['steps'][-1][:300]}" if run["steps"] else ""),
        "steps": run["steps"],
        "engine": run["engine_facts"],
        "this_run": {key: value for key, value in run.items() if key not in ("steps", "engine_facts")},
    }


def _log_ends(out: Path) -> dict[str, str]:
    lines = {p.name: p.read_text(errors="replace").splitlines() for p in out.glob("logs/*.log")}
    return {name: "\n".join(line[:300] for line in kept[-25:]) for name, kept in lines.items()}


def _rows(out: Path) -> list[Any]:
    return [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]


@contextmanager
def _co_tenant(gpu: int) -> Iterator[None]:
    program = f"import torch; held = torch.zeros({CO_TENANT_GB} << 30, dtype=torch.uint8, device='cuda'); print('held')"
    process = subprocess.Popen(
        [sys.executable, "-c", program + "; import sys; sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _engine_core(flow: int) -> int:
    """The process of vLLM's engine core below a flow."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            if re.match(rb"VLLM::EngineCore", command) and _is_below(int(process.name), flow):
                return int(process.name)
        except OSError:
            continue
    raise LookupError("no engine core is running")


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def _wait(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.1)


def _python_path() -> str:
    return ":".join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
