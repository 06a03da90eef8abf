"""The benchmarks run, at sizes that measure nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import _server, harness, orchestration, peers, readme, throughput
from tests.benchmarks.__main__ import main
from tests.benchmarks._server import Server
from tests.benchmarks.workloads import WORKLOADS


def run(folder: Path, name: str, *options: object) -> dict[str, Any]:
    """A benchmark's kept result."""
    path = folder / "result.json"
    assert main([name, "--json", str(path), *map(str, options)]) == 0
    kept: dict[str, Any] = json.loads(path.read_text())
    assert kept["rows"]
    assert set(kept["asked"]) <= set(kept["figures"])
    return kept


def test_each_benchmark_is_listed_with_what_it_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {"throughput", "split", "merge", "download", "report"}
    assert all(len(line.split()) > 5 for line in lines)


def test_a_benchmark_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert "throughput" in capsys.readouterr().err


def test_split_against_commands_that_read_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = run(tmp_path, "split", "--records", 20000, "--rounds", 1)
    assert [row["records"] for row in kept["rows"]] == [20000]
    assert kept["rows"][0]["GB"] == pytest.approx(20000 * 200 / 1e9, rel=0.2)
    assert kept["machine"]["cores"] >= 1
    assert "(asked: <= 64)" in capsys.readouterr().out


def test_merge_with_a_last_shard_that_is_not_full(tmp_path: Path) -> None:
    kept = run(tmp_path, "merge", "--records", 2500, "--shard-size", 1000, "--rounds", 1)
    assert kept["rows"][0]["ratio"] > 0


def test_tables_come_from_the_kept_results() -> None:
    result = {
        "benchmark": "throughput",
        "variant": "mixed",
        "command": "python -m tests.benchmarks throughput",
        "machine": harness.machine(),
        "rows": [{"side": "one call", "tokens/s": 1234.5}, {"side": "our flow", "tokens/s": 1230.0}],
        "figures": {"our flow / one call": 0.996, "not asked for": 3},
        "asked": {"our flow / one call": ">= 0.98"},
        "notes": ["the flow's start is apart"],
    }
    text = f"# Title\n\n{readme.BEGIN}\nold\n{readme.END}\n\n## After\n"
    written = readme.page(readme.page(text, [result]), [result])
    row = "| throughput mixed | our flow / one call | >= 0.98 | 0.996 | `python -m tests.benchmarks throughput` |"
    assert row in written
    assert "old" not in written
    assert written.startswith("# Title\n")
    assert written.endswith("## After\n")
    assert "| one call | 1,234 |" in (tables := readme.tables([result]))
    assert all(harness.machine_line(harness.machine()) in page for page in (written, tables))


def test_the_tables_shown_are_those_of_the_kept_results() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert text == readme.page(text, readme.kept()), "run: python -m tests.benchmarks --readme"
    assert readme.TABLES.read_text(encoding="utf-8") == readme.tables(readme.kept())


def test_a_result_does_not_say_where_it_was_kept(tmp_path: Path) -> None:
    kept = run(tmp_path, "split", "--records", 2000, "--rounds", 1)
    assert kept["command"] == "python -m tests.benchmarks split --records 2000 --rounds 1"


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_the_same_each_time_it_is_written(tmp_path: Path, name: str) -> None:
    texts = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        texts.append(WORKLOADS[name].write(folder, 30).read_text())
    assert texts[0] == texts[1]
    records = [json.loads(line) for line in texts[0].splitlines()]
    assert len({record["max_tokens"] for record in records}) > 10
    for image in (image for record in records for image in record.get("images", [])):
        assert (tmp_path / "one" / image).read_bytes()[:2] == b"\xff\xd8"


def test_thinking_lengths_have_a_tail_of_20_times_the_median(tmp_path: Path) -> None:
    path = WORKLOADS["thinking"].write(tmp_path, 1000)
    lengths = sorted(json.loads(line)["max_tokens"] for line in path.read_text().splitlines())
    assert lengths[-1] > 18 * lengths[500]


def test_ratios_compare_the_sides_of_one_round() -> None:
    """Where the machine was half as fast in one round, the ratio stays."""
    runs = {
        "one call": [{"tokens": 100, "seconds": seconds, "start": 9.0} for seconds in (1.0, 2.0, 1.0)],
        "our flow, 8 shards": [{"tokens": 100, "seconds": seconds, "start": 8.0} for seconds in (1.1, 2.2, 1.1)],
        "usual script": [{"tokens": 100, "seconds": seconds, "start": 9.0} for seconds in (2.2, 4.4, 2.2)],
    }
    assert throughput.ratio(runs, "our flow, 8 shards", "one call") == 0.909
    assert throughput.ratio(runs, "our flow, 8 shards", "usual script") == 2.0
    assert [row["of one call"] for row in throughput.rows_of(runs)] == [1.0, 0.909, 0.455]


def test_a_shard_costs_the_flow_without_the_engines_start(tmp_path: Path, flow_environment: dict[str, str]) -> None:
    row = orchestration.run_flow(tmp_path / "two", 2, flow_environment)
    assert 0 < row["of it engine start s"] < row["flow s"] < row["command s"]
    assert row["ms a shard"] == pytest.approx(500 * (row["flow s"] - row["of it engine start s"]), abs=10)


def test_orchestration_compares_sizes_and_a_rerun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[Path, int] = {}

    def run_flow(folder: Path, shards: int, environment: dict[str, str]) -> dict[str, Any]:
        seen[folder] = seen.get(folder, 0) + 1
        return {"run": f"{shards:,} shards", "ms a shard": 20.0 + shards / 100 if seen[folder] == 1 else 5.0}

    monkeypatch.setattr(orchestration, "run_flow", run_flow)
    kept = run(tmp_path, "orchestration", "--shards", 10, 1000)
    assert [row["run"] for row in kept["rows"]] == ["10 shards", "1,000 shards", "1,000 shards again"]
    assert list(kept["figures"].values()) == [30.0, 1.49, 5.0]


class _Answers(BaseHTTPRequestHandler):
    """A server that has two requests, and made ten tokens more each time it is asked for its figures."""

    tokens = 0

    def do_GET(self) -> None:
        type(self).tokens += 10
        labels = '{engine="0",model_name="m"}'
        text = f"vllm:generation_tokens_total{labels} {float(self.tokens)}\nvllm:num_requests_running{labels} 2.0\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        return None


def test_a_peer_that_cannot_run_is_a_row_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "broken", peers.Peer("no_such_script.py", ()))
    monkeypatch.setattr(peers, "environment", lambda *_: sys.executable)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    comparison = peers.Comparison(WORKLOADS["mixed"], "model", tmp_path / "data.jsonl", 1, tmp_path)
    url = Server(f"http://127.0.0.1:{server.server_port}")
    row = peers.side_row("broken", "server", lambda: comparison.peer("broken", url))
    server.shutdown()
    server.server_close()
    assert row["note"].startswith("cannot run: ")
    assert "no_such_script.py" in row["note"]
    assert "tokens/s" not in row


def test_a_server_is_timed_from_the_first_requests_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's start, its trial request and its end are not in the time."""
    looks = iter([(0, 0), (0, 0), (0, 1), (1, 0), (1, 8), (100, 8), (200, 0)])
    monkeypatch.setattr(Server, "look", lambda self: next(looks, (200, 0)))
    monkeypatch.setattr(_server, "LOOK_SECONDS", 0.05)
    with Server("http://nowhere").watched() as taken:
        time.sleep(0.6)
    assert taken["tokens"] == 200
    assert 0.09 < taken["seconds"] < taken["command"] / 2


def test_the_start_is_timed(tmp_path: Path) -> None:
    assert run(tmp_path, "startup", "--only-help")["figures"]["--help answers after, s"] > 0
