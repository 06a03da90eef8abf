from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.records import ShardManifest, Span, Tally, length_bin
from tasks.report.figures import Plot, _edges, _rates, plots, working_clock
from tests.runs import finished_run


def made(shards: list[ShardManifest], tally: Tally) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(shards, tally)}


def span(start: float, seconds: float, tokens: int = 100, engine: str = "engine-0") -> Span:
    return Span(engine=engine, start=start, seconds=seconds, completion_tokens=tokens)


def with_timeline(shard: ShardManifest, *spans: Span) -> ShardManifest:
    return shard.model_copy(update={"timeline": spans})


def test_a_run_has_all_plots(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    names = list(made(run.shards, Tally.model_validate(run.manifest["tally"])))
    assert names == ["throughput", "completion", "prompt", "finish", "errors", "pass", "shards"]


def test_nothing_is_plotted_of_nothing() -> None:
    assert plots([], Tally()) == []


def test_pauses_between_runs_are_cut_out() -> None:
    clock = working_clock([span(1000, 30), span(1020, 40), span(9000, 10), span(9050, 50)])
    assert clock.seconds == 60 + 100
    at = clock.at(np.array([900.0, 1000, 1030, 5000, 9000, 9100, 9999]))
    assert at.tolist() == [0, 0, 30, 60, 60, 160, 160]


def test_rates_hold_all_tokens() -> None:
    spans = [span(0, 30, 300), span(10, 40, 900), span(10, 40, 200, "engine-10"), span(5, 1, 7, "engine-2")]
    clock = working_clock(spans)
    edges = np.linspace(0, clock.seconds, 14)
    rates = _rates(spans, clock, edges)
    assert list(rates) == ["engine-0", "engine-2", "engine-10"]
    totals = {engine: (rate * np.diff(edges)).sum() for engine, rate in rates.items()}
    assert totals == pytest.approx({"engine-0": 1200, "engine-2": 7, "engine-10": 200})


@pytest.mark.parametrize(("engines", "kind"), [(8, "scatter"), (9, "heatmap")])
def test_many_engines_become_a_heatmap(tmp_path: Path, engines: int, kind: str) -> None:
    shard = finished_run(tmp_path, records=4).shards[0]
    spans = [span(0, 30, engine=f"engine-{i}") for i in range(engines)]
    plot = made([with_timeline(shard, *spans)], Tally())["throughput"]
    assert {trace["type"] for trace in plot.figure["data"]} == {kind}
    assert "left out" not in plot.note


def test_pauses_are_told(tmp_path: Path) -> None:
    shard = finished_run(tmp_path, records=4).shards[0]
    plot = made([with_timeline(shard, span(0, 30), span(500, 30))], Tally())["throughput"]
    assert "1 pause between runs left out" in plot.note


def test_histogram_bins_are_those_of_the_tally() -> None:
    lengths = sorted({length_bin(tokens) for tokens in range(0, 5000)})
    assert _edges(0, lengths[-1]) == lengths
    tally = Tally(samples=3, completion_tokens=24, completion_lengths={3: 1, 12: 2})
    figure = made([], tally)["completion"].figure
    assert figure["data"][0]["y"] == [1, 0, 0, 0, 2]
    assert figure["data"][0]["customdata"] == ["3", "4–5", "6–7", "8–11", "12–15"]


def test_kinds_are_text_to_plotly() -> None:
    figure = made([], Tally(errors=1, errors_by_kind={"<a href='x'>k</a>": 1}))["errors"].figure
    assert figure["data"][0]["y"] == ["&lt;a href='x'&gt;k&lt;/a&gt;"]


def test_pass_at_k_is_a_mean_over_records() -> None:
    tally = Tally(records_graded=4, pass_at={1: 1.0, 2: 2.0, 4: 3.0}, majority_correct=1)
    line, vote = made([], tally)["pass"].figure["data"]
    assert line["y"] == [0.25, 0.5, 0.75]
    assert vote["y"] == [0.25, 0.25]


@pytest.mark.parametrize(("count", "bars"), [(3, 3), (240, 240), (241, 121), (5000, 239)])
def test_shards_are_grouped_where_there_are_many(tmp_path: Path, count: int, bars: int) -> None:
    one = finished_run(tmp_path, records=4).shards[0]
    shards = [one.model_copy(update={"index": i, "seconds": 2.0, "timeline": ()}) for i in range(count)]
    data: Any = made(shards, Tally())["shards"].figure["data"][0]
    assert len(data["x"]) == bars
    assert set(data["y"]) == {2.0}
