"""The README's tables of figures, made from the kept results, so that no figure is copied by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import Figures, machine_line, number

BEGIN = "<!-- figures: written by `python -m tests.benchmarks --readme` -->"
END = "<!-- end of figures -->"
WITH_ROWS = ("throughput", "peers", "two_gpus")
"""Benchmarks whose whole table is shown, not only the figures that something is asked of."""


def write(path: Path, results: Path) -> None:
    """Replace what stands between the marks of the README."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no place for the figures: the lines\n{BEGIN}\n{END}")
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))]
    path.write_text(f"{before}{BEGIN}\n{render(kept)}\n{END}{after}", encoding="utf-8")


def render(kept: Sequence[Figures]) -> str:
    """Markdown: a table of what is asked, for each machine, and the tables of the comparisons."""
    machines = {machine_line(result["machine"]): result["machine"] for result in kept}
    parts = []
    for line in machines:
        here = [result for result in kept if machine_line(result["machine"]) == line]
        parts += [f"On {line}:", _asked(here), *(_rows(r) for r in here if r["benchmark"] in WITH_ROWS)]
    return "\n\n".join(["", *parts, ""])


def _asked(kept: Sequence[Figures]) -> str:
    rows = [
        {
            "benchmark": _title(result),
            "figure": name,
            "asked": wanted,
            "measured": result["figures"][name],
            "command": f"`{result['command']}`",
        }
        for result in kept
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
