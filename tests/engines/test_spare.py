"""A worker started ahead: it is the run's engine, and ends where nobody takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config import GenerateConfig
from tasks.engines import spare
from tasks.engines.worker_process import WORKER


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def config(output: Path | str, **engine: object) -> GenerateConfig:
    sections = {"model": {"source": "m"}, "dataset": {"path": "d.jsonl"}, "output": {"path": str(output)}}
    return GenerateConfig.model_validate({**sections, "engine": engine})


def test_it_is_taken_once_and_by_its_own_command(tmp_path: Path) -> None:
    spare.start_ahead(config(tmp_path))
    try:
        assert spare.take(("another", "command"), {}) is None
        assert spare.take(WORKER, {"OMP_NUM_THREADS": "1"}) is None, "one of several engines"
        process = spare.take(WORKER, {})
        assert process is not None
        assert process.poll() is None
        assert spare.take(WORKER, {}) is None
    finally:
        spare.discard()
    process.kill()
    process.communicate()


def test_it_ends_where_nobody_takes_it(tmp_path: Path) -> None:
    spare.start_ahead(config(tmp_path))
    process = spare._spare
    assert process is not None
    spare.discard()
    assert process.returncode is not None
    assert spare.take(WORKER, {}) is None


@pytest.mark.parametrize(
    "engine", [{"replicas": 2}, {"kind": "openai", "base_urls": ["http://127.0.0.1:9/v1"]}, {"pool": "ray"}]
)
def test_only_for_one_engine_on_this_machine(tmp_path: Path, engine: dict[str, object]) -> None:
    spare.start_ahead(config(tmp_path, **engine))
    assert spare._spare is None


def test_not_where_all_may_be_finished_or_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    spare.start_ahead(config(tmp_path))
    spare.start_ahead(config("s3://bucket/run"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    spare.start_ahead(config(tmp_path / "new"))
    assert spare._spare is None


def test_where_there_can_be_no_log_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spare.start_ahead(config(tmp_path / "file"))
    assert spare._spare is None


def test_it_ends_with_its_flow_while_it_imports(tmp_path: Path) -> None:
    """As where the flow is killed in its first seconds: vLLM's import takes ten."""
    spare.start_ahead(config(tmp_path))
    process = spare._spare
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0, "it went on to its spec"
    spare._spare = None
