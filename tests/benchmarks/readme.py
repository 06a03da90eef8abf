"""The tables of figures in the README and in docs/benchmarks.md, made from the kept results: none is copied by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.harness import ROOT, Figures, machine_line, number

BEGIN = "<!-- figures: written by `python -m tests.benchmarks --readme` -->"
END = "<!-- end of figures -->"
README, TABLES, KEPT = ROOT / "README.md", ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks"
WITH_ROWS = ("throughput", "peers", "two_gpus")
"""Benchmarks whose whole table is shown, not only the figures that something is asked of."""
TITLE = """# Benchmarks, side by side

What the README's figures come from: written by `python -m tests.benchmarks --readme` from `docs/benchmarks/`. All sides
of a table ran in one go, one after the other, with the same prompts, output lengths and engine settings."""


def keep(results: Iterable[Path]) -> None:
    """Take results over into those that are shown, under their files' names."""
    for path in results:
        json.loads(path.read_text(encoding="utf-8"))
        shutil.copy(path, KEPT / path.name)


def write() -> None:
    """Replace what stands between the marks of the README, and the page of tables."""
    README.write_text(page(README.read_text(encoding="utf-8"), kept()), encoding="utf-8")
    TABLES.write_text(tables(kept()), encoding="utf-8")


def kept() -> list[Figures]:
    """The results that are shown."""
    files = sorted(KEPT.glob("*.json"), key=lambda path: path.stem)
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def page(text: str, results: Sequence[Figures]) -> str:
    """The README's text with what is asked and measured, for each machine, between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no place for the figures: the lines\n{BEGIN}\n{END}")
    parts = [f"On {line}:\n\n{_asked(here)}" for line, here in _by_machine(results).items()]
    return "\n\n".join([before + BEGIN, *parts, END + after])


def tables(results: Sequence[Figures]) -> str:
    """The whole tables of the comparisons, as a page."""
    parts = [TITLE]
    for line, here in _by_machine(results).items():
        parts += [f"## {line}", *(_rows(result) for result in here if result["benchmark"] in WITH_ROWS)]
    return "\n\n".join(parts) + "\n"


def _by_machine(results: Sequence[Figures]) -> dict[str, list[Figures]]:
    machines: dict[str, list[Figures]] = {}
    for result in results:
        machines.setdefault(machine_line(result["machine"]), []).append(result)
    return machines


def _asked(results: Sequence[Figures]) -> str:
    rows = [
        {
            "benchmark": _title(result),
            "figure": name,
            "asked": wanted,
            "measured": result["figures"][name],
            "command": f"`{result['command']}`",
        }
        for result in results
        for name, wanted in result["asked"].items()
        if name in result["figures"]
    ]
    return markdown(rows)


def _title(result: Figures) -> str:
    return " ".join(filter(None, (result["benchmark"], result.get("variant"))))


def _rows(result: Figures) -> str:
    notes = "".join(f"\n{note[0].upper()}{note[1:]}." for note in result["notes"])
    return f"`{result['command']}`:\n\n{markdown(result['rows'])}" + (f"\n{notes}" if notes else "")


def markdown(rows: Sequence[Figures]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([number(row.get(name, "")) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
