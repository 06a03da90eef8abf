"""The whole flow as a user runs it, on a real vLLM engine with a tiny model and Qwen3's real tokenizer and template."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.conftest import RunFlow
from tests.flow_runs import parsed, rows_of

pytestmark = pytest.mark.engine

N = 2
GOOD = 36
BAD_LINES = [
    b"{not json",
    b"[1, 2]",
    b'{"messages": "no list"}',
    b'{"messages": [{"role": "wizard", "content": "hi"}]}',
]
RECORDS = GOOD + len(BAD_LINES)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """A dataset of conversations, prompts and bad lines, and a run config for it."""
    folder = tmp_path_factory.mktemp("flow")
    lines = [orjson.dumps(_record(i)) for i in range(GOOD)]
    for place, bad in enumerate(BAD_LINES):
        lines.insert(4 + 9 * place, bad)
    lines.insert(3, b"")
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    config = {
        "model": {"source": str(tiny_qwen3)},
        "dataset": {"path": str(folder / "data.jsonl"), "shard_size": 5},
        "prompt": {"system": "Be brief.", "enable_thinking": False},
        "sampling": {"n": N, "max_tokens": 8, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 7},
        "engine": {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16},
        "output": {"path": str(folder / "out"), "keep_fields": ["topic"], "chunk_seconds": 0.5},
        "validation": {"max_error_rate": 0.2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def finished(workspace: Path, run_flow: RunFlow) -> Path:
    """The run, done once; its output folder."""
    done = run_flow("--config", str(workspace / "run.yaml"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert "8 shards" in (workspace / "out/logs/run.log").read_text()
    assert "data.jsonl" in done.stdout
    return workspace / "out"


def test_each_record_has_its_samples_once_and_in_order(finished: Path) -> None:
    samples, errors = rows_of(finished / "data.jsonl"), rows_of(finished / "errors.jsonl")
    places = sorted((r["original_index"], r["sample_id"]) for r in samples + errors)
    assert places == [(i, s) for i in range(RECORDS) for s in range(N)]
    assert [(r["original_index"], r["sample_id"]) for r in samples] == sorted(
        (r["original_index"], r["sample_id"]) for r in samples
    )
    assert {r["error"] for r in errors} == {"malformed_record"}
    assert len(errors) == len(BAD_LINES) * N
    assert "data.jsonl line 6" in errors[0]["message"]  # the bad line at index 4, after a blank line


def test_rows_hold_what_users_read(finished: Path) -> None:
    by_place = {(r["original_index"], r["sample_id"]): r for r in rows_of(finished / "data.jsonl")}
    row = by_place[(0, 0)]
    assert list(row)[:5] == ["original_index", "sample_id", "id", "prompt", "label"]
    assert (row["id"], row["label"], row["topic"]) == ("r0", "label 0", "math")
    assert "<|im_start|>system\nBe brief." in row["prompt"]
    assert "label 0" not in row["prompt"]
    assert row["prompt"].endswith("<think>\n\n</think>\n\n")
    assert 1 <= row["completion_tokens"] <= 8
    assert by_place[(0, 0)]["predict"] != by_place[(0, 1)]["predict"]
    assert by_place[(1, 0)]["label"] == "1"


def test_the_manifest_tells_where_it_comes_from(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["passed"] is True
    assert (manifest["samples"], manifest["errors"]) == (GOOD * N, len(BAD_LINES) * N)
    assert manifest["dataset"]["records"] == RECORDS
    assert manifest["dataset"]["blank_lines"] == 1
    assert manifest["files"]["data"]["bytes"] == (finished / "data.jsonl").stat().st_size
    assert manifest["config"]["sampling"]["seed"] == 7
    assert 0 <= manifest["this_run"]["engines"][0]["idle_seconds"] <= manifest["this_run"]["seconds"]


def test_a_rerun_is_cached_and_changes_nothing(
    workspace: Path, finished: Path, run_flow: RunFlow, prefect_api: str
) -> None:
    before, log = (finished / "data.jsonl").read_bytes(), _engine_log(finished)
    (manifest,) = finished.glob("shards/*/00000.manifest.json")
    chunk = manifest.parent / "00000/chunk-1-a.jsonl"  # left by a kill that came before the shard's chunks were dropped
    chunk.parent.mkdir()
    chunk.write_bytes(b"{}")
    assert run_flow("--config", str(workspace / "run.yaml")).returncode == 0
    assert not chunk.parent.exists()
    assert (finished / "data.jsonl").read_bytes() == before
    assert _engine_log(finished) == log
    assert _shard_states(prefect_api)[-8:] == ["Cached"] * 8


@pytest.mark.parametrize("how", ["max_num_seqs", "renamed", "moved", "prefect storage wiped"])
def test_what_does_not_change_the_text_reruns_nothing(
    workspace: Path, finished: Path, run_flow: RunFlow, tmp_path: Path, how: str, prefect_home: Path
) -> None:
    arguments = ["--config", str(workspace / "run.yaml")]
    output = finished
    if how == "max_num_seqs":
        arguments += ["--engine.max_num_seqs", "4"]
    elif how == "renamed":
        shutil.copy(workspace / "data.jsonl", tmp_path / "renamed.jsonl")
        arguments += ["--dataset.path", str(tmp_path / "renamed.jsonl")]
    elif how == "moved":
        output = tmp_path / "moved"
        shutil.copytree(finished, output)
        arguments += ["--output.path", str(output)]
    else:
        shutil.rmtree(prefect_home / "storage")
    log = _engine_log(output)
    done = run_flow(*arguments)
    assert done.returncode == 0, done.stderr
    assert _engine_log(output) == log
    assert (output / "data.jsonl").read_bytes() == (finished / "data.jsonl").read_bytes()


def test_another_temperature_makes_all_shards_again(
    workspace: Path, finished: Path, run_flow: RunFlow, tmp_path: Path
) -> None:
    """Beside the old ones, which a run with the old settings finds again. The engines are fake: they do not matter."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (old,) = (p for p in (output / "shards").iterdir() if p.is_dir())
    other = ["--config", str(workspace / "run.yaml"), "--output.path", str(output), "--sampling.temperature", "0.5"]
    done = run_flow(*other, fake=True)
    assert done.returncode == 0, done.stderr
    (new,) = (p for p in (output / "shards").iterdir() if p.is_dir() and p != old)
    for folder in (old, new):
        assert len(list(folder.glob("*.manifest.json"))) == 8
    assert (output / "data.jsonl").read_bytes() != (finished / "data.jsonl").read_bytes()


def test_only_what_is_missing_is_made(workspace: Path, finished: Path, run_flow: RunFlow, tmp_path: Path) -> None:
    """Ten lines more, one shard's file gone and another's edited: these shards are made again, no others."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    (folder,) = (p for p in (output / "shards").iterdir() if p.is_dir())
    whole = (folder / "00001.jsonl").read_bytes()
    (folder / "00001.jsonl").unlink()
    (folder / "00002.jsonl").write_bytes((folder / "00002.jsonl").read_bytes().replace(b"predict", b"Predict", 1))
    grown = tmp_path / "grown.jsonl"
    more = b"\n".join(orjson.dumps({"prompt": f"more {i}"}) for i in range(3))
    grown.write_bytes((workspace / "data.jsonl").read_bytes() + b"\n" + more)
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.manifest.json")}
    done = run_flow("--config", str(workspace / "run.yaml"), "--output.path", str(output), "--dataset.path", str(grown))
    assert done.returncode == 0, done.stderr
    now = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.manifest.json")}
    assert {name for name in now if kept.get(name) != now[name]} == {
        "00001.manifest.json",
        "00002.manifest.json",
        "00008.manifest.json",
    }
    assert "00002.jsonl was changed after it was finished" in done.stderr or "bytes" in done.stderr
    assert len(rows_of(output / "data.jsonl")) == (GOOD + 3) * N
    assert [r["prompt"] for r in parsed(whole)] == [r["prompt"] for r in rows_of(folder / "00001.jsonl")]


def test_a_shut_gate_fails_the_run_with_its_figure(workspace: Path, finished: Path, run_flow: RunFlow) -> None:
    before = (finished / "data.jsonl").read_bytes()
    done = run_flow("--config", str(workspace / "run.yaml"), "--validation.max_error_rate", "0.05")
    assert done.returncode == 1
    assert "max_error_rate" in done.stderr
    assert "0.05" in done.stderr or "5" in done.stderr
    assert (finished / "data.jsonl").read_bytes() == before


def _record(number: int) -> dict[str, Any]:
    if number % 2:
        return {"prompt": f"What is {number} + 1?", "label": str(number)}
    turns = [{"role": "user", "content": f"Question {number}"}, {"role": "assistant", "content": f"label {number}"}]
    return {"id": f"r{number}", "messages": turns, "topic": "math"}


def _engine_log(output: Path) -> bytes:
    log = output / "logs/engine-0.log"
    return log.read_bytes() if log.exists() else b""


def _shard_states(api: str) -> list[str]:
    """State names of the generate_shard task runs, oldest first, once the server has written them all."""
    body = {"sort": "EXPECTED_START_TIME_ASC", "task_runs": {"tags": {"all_": ["generate"]}}}
    for _ in range(20):
        request = urllib.request.Request(
            f"{api}/task_runs/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            states = [run["state_name"] for run in json.load(response)]
        if len(states) >= 16 and states[-8:] == ["Cached"] * 8:
            break
        time.sleep(1)
    return states
