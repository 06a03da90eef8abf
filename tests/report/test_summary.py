"""The summary in Prefect's UI: bounded, with pictures, and nothing that a model wrote is more than text."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from tasks.records import Json
from tasks.report.summary import summary
from tests.runs import finished_run
from tests.shards import sample_row

HOSTILE = "```\n# <img src=x onerror=alert(1)>\n````\n[x](javascript:alert(1)) | cell"


def _hostile_row(index: int, sample: int) -> Json:
    row = sample_row(index, sample)
    return row | {"predict": HOSTILE} if "predict" in row else row | {"message": HOSTILE}


def test_it_has_figures_pictures_samples_errors_and_files(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=200)
    text = summary(run.storage, run.manifest, run.shards)
    assert "gates passed" in text
    assert "| Samples | 392 | 200 records × 2 |" in text
    assert [base64.b64decode(uri)[:4] for uri in re.findall(r"base64,([^)]*)\)", text)] == [b"\x89PNG"] * 3
    assert "![Throughput](data:image/png" in text
    assert "**record 0, sample 0** (stop)" in text
    assert "| 49 | image\\_not\\_found |" in text
    assert f"- `{run.storage.root}/report.html`" in text
    assert len(text) < 150_000


def test_a_fence_is_longer_than_any_in_the_text_and_cells_are_escaped(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=200, row=_hostile_row)
    text = summary(run.storage, run.manifest, run.shards)
    assert f"`````text\n{HOSTILE}\n`````" in text
    cells = next(line for line in text.splitlines() if line.startswith("| 49 |"))
    assert "\\<img" in cells
    assert "\\|" in cells
    assert "\\[x\\]\\(javascript" in cells
