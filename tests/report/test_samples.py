from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tasks.records import ErrorRow, Json
from tasks.report import samples
from tasks.report.samples import choose
from tests.runs import VALIDATION, finished_run
from tests.shards import KEY, sample_row

FOLDER = f"shards/{KEY}"


def test_a_small_run_has_a_spread_of_records_with_their_samples(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=1000, n=6)
    shown = choose(run.storage, FOLDER, run.shards, VALIDATION)
    places = [(row.index, row.sample) for row in shown]
    assert places == sorted(set(places))
    assert {index // 100 for index, _ in places} == set(range(10))
    whole = [index for index in {i for i, _ in places} if {(index, s) for s in range(4)} <= set(places)]
    assert len(whole) >= 200


def test_the_choice_is_the_same_each_time(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=500)
    first, second = (choose(run.storage, FOLDER, run.shards, VALIDATION) for _ in range(2))
    assert [row.json() for row in first] == [row.json() for row in second]


def test_flags(tmp_path: Path) -> None:
    def row(index: int, sample: int) -> Json:
        made = sample_row(index, sample) | {"finish_reason": "stop", "answer": "x", "label": "x"}
        changes: list[Json] = [
            {},
            {"finish_reason": "length"},
            {"predict": "  ", "answer": None},
            {"answer": "y"},
            {"label": None},
        ]
        return made | changes[index]

    run = finished_run(tmp_path, records=5, n=1, row=row)
    flags = [shown.flags for shown in choose(run.storage, FOLDER, run.shards, VALIDATION)]
    assert flags == [("right",), ("truncated", "right"), ("empty", "format", "wrong"), ("wrong",), ()]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans hardly anything, as if the run were huge."""
    monkeypatch.setattr(samples, "SCAN_BYTES", 4000)
    monkeypatch.setattr(samples, "WINDOW_BYTES", 1000)


@pytest.mark.usefixtures("small_windows")
def test_each_kind_of_error_and_each_rare_flag_has_its_example(tmp_path: Path) -> None:
    def row(index: int, sample: int) -> Json:
        if index == 777:
            return ErrorRow(index, sample, "rare_kind", "only once").row()
        made = sample_row(index, sample)
        if "error" in made:
            return made
        return made | {"finish_reason": "length" if index == 778 else "stop", "predict": "" if index == 779 else "x"}

    run = finished_run(tmp_path, records=1000, n=1, row=row)
    shown = choose(run.storage, FOLDER, run.shards, VALIDATION)
    assert {777, 778, 779} <= {sample.index for sample in shown}
    assert {sample.fields["error"] for sample in shown if "error" in sample.flags} == {"rare_kind", "image_not_found"}
    assert len(shown) < 200


@pytest.mark.usefixtures("small_windows")
def test_windows_are_spread_over_a_large_run(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=1000, n=1)
    windows = samples._windows(run.shards)
    assert len(windows) == 4
    assert sum(end - start for _, start, end in windows) <= 4000
    assert len({file.name for file, _, _ in windows}) == 4


@pytest.mark.parametrize("width", [1, 50, 333, 10**6])
def test_adjacent_ranges_hold_each_line_once(tmp_path: Path, width: int) -> None:
    run = finished_run(tmp_path, records=20, n=1)
    file = run.shards[0].data
    parts = [
        row
        for start in range(0, file.bytes, width)
        for row in samples.read_rows(run.storage, f"{FOLDER}/{file.name}", start, min(start + width, file.bytes))
    ]
    assert parts == [orjson.loads(line) for line in run.storage.read(f"{FOLDER}/{file.name}").splitlines()]


def test_long_texts_are_shortened_and_say_so(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=1, n=1, row=lambda i, s: sample_row(i, s) | {"predict": "a" * 9000 + "end"})
    predict = choose(run.storage, FOLDER, run.shards, VALIDATION)[0].fields["predict"]
    assert "… 3,003 characters left out …" in predict
    assert predict.startswith("aaa")
    assert predict.endswith("end")


def test_all_together_stay_below_the_bound_and_still_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_BYTES", 100_000)
    run = finished_run(tmp_path, records=1000, n=1, row=lambda i, s: sample_row(i, s) | {"reasoning": "é" * 5000})
    shown = choose(run.storage, FOLDER, run.shards, VALIDATION)
    assert 0 < len(orjson.dumps([row.json() for row in shown])) <= 101_000
    assert min(row.index for row in shown) < 250
    assert max(row.index for row in shown) > 750


def test_kept_fields_are_shown_as_text(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=1, n=1, row=lambda i, s: sample_row(i, s) | {"level": 3, "tags": ["a"]})
    fields = choose(run.storage, FOLDER, run.shards, VALIDATION)[0].fields
    assert fields["extra"] == {"level": "3", "tags": '["a"]'}


def test_errors_are_of_different_records(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=300, n=4)
    shown = choose(run.storage, FOLDER, run.shards, VALIDATION)
    assert [row.index for row in shown if "error" in row.flags] == [49, 99, 149, 199, 249, 299]


def test_no_samples_at_all(tmp_path: Path) -> None:
    run = finished_run(tmp_path, records=3, n=1, row=lambda i, s: ErrorRow(i, s, "engine_crash", "again").row())
    assert [row.flags for row in choose(run.storage, FOLDER, run.shards, VALIDATION)] == [("error",)] * 3
