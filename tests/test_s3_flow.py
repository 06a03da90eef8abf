"""The whole flow with its dataset, model and output on a real S3 server."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import ROOT, RunFlow
from tests.flow_runs import parsed, place_of
from tests.inputs.tables import texts, write_table
from tests.seaweed import Seaweed, SeaweedServer, seaweed

__all__ = ["seaweed"]

SOME_OF_ALL = [("local", ".jsonl"), ("s3", ".jsonl.gz"), ("local", ".jsonl.zst"), ("s3", ".parquet"), ("s3", ".csv")]
"""Each format once; all of them in both places, on a real engine: `python -m tests.benchmarks.formats`."""
FAKE_FLOW = [sys.executable, "-m", "tests.fake_flow"]
SEVERAL = """
import sys
import yaml
from tasks.config import GenerateConfig
from tests.fake_flow import generate
for path in sys.argv[1:]:
    with open(path) as file:
        config = GenerateConfig.model_validate(yaml.safe_load(file))
    generate(**{name: getattr(config, name) for name in GenerateConfig.model_fields})
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As much of a model as the fake engine needs."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text('{"model_type": "fake"}')
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


@pytest.fixture
def own_server() -> Iterator[SeaweedServer]:
    with SeaweedServer() as server:
        yield server


def write_config(path: Path, places: tuple[str, str, str], **sections: dict[str, Any]) -> Path:
    """A config of a model, a dataset and an output, with further fields of any section."""
    config: dict[str, dict[str, Any]] = {
        "model": {"source": places[0]},
        "dataset": {"path": places[1]},
        "output": {"path": places[2], "chunk_seconds": 0.2},
    }
    for name, fields in sections.items():
        config.setdefault(name, {}).update(fields)
    path.write_text(yaml.safe_dump(config))
    return path


def fake(max_num_seqs: int = 32, delay: float = 0.0) -> dict[str, Any]:
    """The fake engine's section."""
    return {"max_num_seqs": max_num_seqs, "extra": {"load_format": "dummy", "delay": delay}}


def start(config: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*FAKE_FLOW, "--config", str(config)],
        env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def made(access: Seaweed, output: str) -> int:
    """Samples that stand in chunks or finished shards; while a shard is finished they may stand in both."""
    fs, places = access.filesystem(), set()
    for path in fs.find(output):
        if path.endswith(".jsonl") and "/shards/" in path:
            try:
                lines = parsed(fs.cat_file(path))
            except FileNotFoundError:
                continue  # a chunk whose shard has just been finished
            places |= {place_of(line.get("row", line)) for line in lines}
    return len(places)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_store_and_a_flow_that_are_killed_lose_nothing_and_double_nothing(
    own_server: SeaweedServer, flow_environment: dict[str, str], model: str, tmp_path: Path
) -> None:
    """The server is killed and started again under a run, which is killed later; the next one takes over at once, and
    lives through the same. Neither can be done before that, however late we look."""
    access = own_server.access
    access.bucket("runs")
    prompts = b"".join(orjson.dumps({"prompt": f"prompt {number}"}) + b"\n" for number in range(300))
    access.filesystem().pipe_file("runs/in/data.jsonl", prompts)
    allowance = tmp_path / "allowance"
    allowance.write_text("100")
    engine = fake(6, 0.2)
    engine["extra"]["allowance"] = str(allowance)
    config = write_config(
        tmp_path / "run.yaml", (model, "s3://runs/in/*.jsonl", "s3://runs/out"), engine=engine,
        dataset={"shard_size": 40}, sampling={"n": 2},
    )  # fmt: skip
    environment = flow_environment | access.environment
    first = start(config, environment)
    restart_after(own_server, 50, first)
    until(lambda: made(access, "runs/out") > 150, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = made(access, "runs/out")
    second = start(config, environment)
    restart_after(own_server, kept + 100, second)
    allowance.write_text("300")
    stdout, stderr = second.communicate(timeout=400)
    assert second.returncode == 0, stderr
    assert "took over s3://runs/out from a run that died" in stderr
    assert "s3://runs/out/data.jsonl" in stdout
    data = access.filesystem().cat_file("runs/out/data.jsonl")
    assert [(r["original_index"], r["sample_id"], r["predict"]) for r in parsed(data)] == [
        (index, sample, f"prompt {index} {sample}") for index in range(300) for sample in range(2)
    ]
    manifest = orjson.loads(access.filesystem().cat_file("runs/out/manifest.json"))
    assert manifest["this_run"]["generated_tokens"] <= 600 - kept  # a token a sample: none is made twice
    assert not [name for name in access.filesystem().find("runs/out") if "chunk-" in name or "/.lock" in name]


def restart_after(server: SeaweedServer, count: int, run: subprocess.Popen[str]) -> None:
    """Kill the server when so many rows are stored, and start it again some seconds later."""
    until(lambda: made(server.access, "runs/out") > count, run)
    server.kill()
    time.sleep(2)
    server.start()


def test_the_same_records_in_any_format_and_place_make_the_same_data(
    seaweed: Seaweed, flow_environment: dict[str, str], model: str, tmp_path: Path
) -> None:
    fs, records = seaweed.filesystem(), texts(1000)
    seaweed.bucket("runs")
    configs, outputs = [], []
    for place, suffix in SOME_OF_ALL:
        local = str(write_table(tmp_path / f"data{suffix}", records, 300))
        remote = f"s3://runs/{tmp_path.name}/data{suffix}"
        fs.put_file(local, remote)
        output = f"{tmp_path}/out{suffix}" if place == "local" else f"{remote}-out"
        config = write_config(
            tmp_path / f"{place}{suffix}.yaml", (model, local if place == "local" else remote, output), engine=fake(),
            dataset={"shard_size": 500}, sampling={"seed": 1}, output={"keep_fields": ["note"]},
        )  # fmt: skip
        configs.append(str(config))
        outputs.append(output)
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, *configs],
        env=flow_environment | seaweed.environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = {
        fs.cat_file(f"{output}/data.jsonl") if output.startswith("s3") else Path(output, "data.jsonl").read_bytes()
        for output in outputs
    }
    assert len(data) == 1
    made_rows = parsed(data.pop())
    assert [(r["prompt"], r["note"]) for r in made_rows] == [(r["prompt"], r["note"]) for r in records]


@pytest.mark.engine
def test_all_on_s3_with_a_real_engine_and_no_secret_told(
    seaweed: Seaweed, run_flow: RunFlow, tiny_qwen3: Path, tmp_path: Path
) -> None:
    fs, home = seaweed.filesystem(), f"{seaweed.bucket('runs')}/{tmp_path.name}"
    for path in tiny_qwen3.iterdir():
        fs.put_file(str(path), f"{home}/model/{path.name}")
    fs.put_file(str(write_table(tmp_path / "data.parquet", texts(24), 10)), f"{home}/data.parquet")
    config = write_config(
        tmp_path / "run.yaml", (f"s3://{home}/model", f"s3://{home}/data.parquet", f"s3://{home}/out"),
        model={"cache_dir": str(tmp_path / "models")},
        engine={"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16},
        output={"format": "parquet", "compression": "zst", "keep_fields": ["note"]}, dataset={"shard_size": 10},
        sampling={"n": 2, "max_tokens": 4, "temperature": 1.0, "seed": 1},
    )  # fmt: skip
    environment = seaweed.environment | {name: str(tmp_path / name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
    done = run_flow("--config", str(config), environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"s3://{home}/out/data.parquet" in done.stdout
    table = pq.read_table(io.BytesIO(fs.cat_file(f"{home}/out/data.parquet")))
    places = zip(table["original_index"].to_pylist(), table["sample_id"].to_pylist(), strict=True)
    assert list(places) == [(index, sample) for index in range(24) for sample in range(2)]
    manifest = fs.cat_file(f"{home}/out/manifest.json")

    # As plain lines after all: nothing is generated for that.
    plainly = ["--config", str(config), "--output.format", "jsonl", "--output.compression", "null"]
    done = run_flow(*plainly, environment=environment)
    assert done.returncode == 0, done.stderr
    plain = parsed(fs.cat_file(f"{home}/out/data.jsonl"))
    assert [row["predict"] for row in plain] == table["predict"].to_pylist()
    assert orjson.loads(fs.cat_file(f"{home}/out/manifest.json"))["this_run"]["generated_tokens"] == 0
    assert not fs.exists(f"{home}/out/data.parquet")

    logs = b"".join(path.read_bytes() for path in (tmp_path / "XDG_STATE_HOME").rglob("*.log"))
    assert b"engine" in logs
    told = [manifest, logs, fs.cat_file(f"{home}/out/report.html"), (done.stdout + done.stderr).encode()]
    assert not [text for text in told if seaweed.secret_key.encode() in text or seaweed.access_key.encode() in text]
    assert sorted(path.rsplit("/out/", 1)[1] for path in fs.find(f"{home}/out") if "/shards/" not in path) == [
        "data.jsonl", "errors.jsonl", "manifest.json", "report.html",
    ]  # fmt: skip
