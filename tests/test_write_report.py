from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from tasks.records import ErrorRow, Json
from tasks.report.headline import duration
from tasks.write_report import page, report, write_report
from tests.runs import Run, finished_run
from tests.shards import sample_row

ATTACK = "</script><script>alert(1)</script><!--<script> & ]]> \u2028 <img src=x onerror=alert(2)>"


class Parsed(HTMLParser):
    """What a browser's parser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    @property
    def data(self) -> Json:
        parsed: Json = orjson.loads(self.scripts[0])
        return parsed

    @property
    def policy(self) -> str:
        return next(attrs["content"] or "" for tag, attrs in self.tags if attrs.get("http-equiv"))


def _page(run: Run) -> str:
    return page(run.storage, run.manifest, run.dataset, run.shards)


def _attacking(index: int, sample: int) -> Json:
    made = sample_row(index, sample)
    if "error" in made:
        return ErrorRow(index, sample, ATTACK, ATTACK).row()
    return made | dict.fromkeys(("id", "prompt", "label", "predict", "reasoning", "answer", "kept", ATTACK), ATTACK)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    html = Parsed(_page(finished_run(tmp_path)))
    links = [value for _, attrs in html.tags for name, value in attrs.items() if name in ("src", "href", "action")]
    assert links == ["data:,"]
    assert "default-src 'none'" in html.policy


def test_only_its_own_scripts_may_run(tmp_path: Path) -> None:
    html = Parsed(_page(finished_run(tmp_path)))
    kinds = [attrs.get("type") for tag, attrs in html.tags if tag == "script"]
    assert kinds == ["application/json", "text/plain", None]
    for script in html.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in html.policy
    assert "unsafe-inline" not in html.policy.split("script-src")[1].split(";")[0]


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    plain = Parsed(_page(finished_run(tmp_path / "plain")))
    attacked = Parsed(_page(finished_run(tmp_path / "attacked", row=_attacking)))
    assert [tag for tag, _ in attacked.tags] == [tag for tag, _ in plain.tags]
    assert attacked.scripts[1:] == plain.scripts[1:]
    assert "<" not in attacked.scripts[0]
    samples = attacked.data["samples"]
    assert {sample["predict"] for sample in samples if "predict" in sample} == {ATTACK}
    assert {sample["message"] for sample in samples if "message" in sample} == {ATTACK}


def test_what_a_person_configured_stays_text(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.manifest["config"]["model"]["source"] = run.manifest["model"]["source"] = "<b>x</b>"
    run.manifest["config"]["prompt"]["system"] = ATTACK
    html = Parsed(_page(run))
    assert any("<b>x</b>" in text for text in html.texts)
    assert len(html.scripts) == 3


def test_head_and_gates(tmp_path: Path) -> None:
    text = " ".join(" ".join(Parsed(_page(finished_run(tmp_path))).texts).split())
    for shown in (
        "Qwen3-8B on data.jsonl",
        "failed",
        "2025-10-09 08:53 UTC",
        "Samples 236 120 records × 2",
        "Errors 4 1.67%",
        "Duration 1 h 12 min",
        "Accuracy 50% 236 graded samples",
        "max_truncated_rate ✗ 10.17% at most 8%",
        "min_accuracy ✓ 50% at least 0%",
        "temperature: 0.8",
        "238 of 240 rows",
        "vllm 0.32.0",
    ):
        assert shown in text


def test_every_plot_has_its_place(tmp_path: Path) -> None:
    html = Parsed(_page(finished_run(tmp_path)))
    places = [attrs["data-plot"] for _, attrs in html.tags if "data-plot" in attrs]
    assert places == list(html.data["plots"])
    assert len(places) == 7


def test_it_stays_below_ten_megabytes(tmp_path: Path) -> None:
    def long(index: int, sample: int) -> Json:
        return sample_row(index, sample) | dict.fromkeys(("prompt", "predict", "reasoning"), f"<{index}>" * 9000)

    run = finished_run(tmp_path, records=400, row=lambda i, s: long(i, s) if i % 50 != 49 else sample_row(i, s))
    run.manifest["config"]["prompt"]["system"] = "s" * 500_000
    html = _page(run)
    assert len(html.encode()) < 9_000_000
    assert "all of it is in manifest.json" in html


def test_the_same_run_makes_the_same_page(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert _page(run) == _page(run)


def test_a_run_of_errors_alone_has_a_report(tmp_path: Path) -> None:
    run = finished_run(tmp_path, row=lambda i, s: ErrorRow(i, s, "engine_crash", "run again").row())
    html = Parsed(_page(run))
    assert "Accuracy" not in html.texts
    assert list(html.data["plots"]) == ["errors"]
    assert {sample["error"] for sample in html.data["samples"]} == {"engine_crash"}


def test_the_task_writes_the_page_into_the_output_folder(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    where = write_report.fn(str(tmp_path), run.manifest, run.dataset, run.shards)
    assert where == str(tmp_path / "report.html")
    assert where == report(run.storage, run.manifest, run.dataset, run.shards)
    assert Path(where).read_text(encoding="utf-8") == _page(run)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90000, "1 d 1 h"), (59.96, "60.0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
