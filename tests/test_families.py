"""Thinking, answer formats, structured output, YaRN and gpt-oss on real engines; rows are read back from files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from jsonschema import validate

from tests import models
from tests.conftest import RunFlow
from tests.engine_jobs import Made, run_jobs
from tests.speaking import speaking_gpt_oss

pytestmark = pytest.mark.engine

FLAT = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
EFFORTS = ("low", "medium", "high")
ORIGINAL = 8192
"""The context that the tiny Qwen3 was made for."""


def sampling(**fields: Any) -> dict[str, Any]:
    return FLAT | {"n": 4, "max_tokens": 64, "seed": 1} | fields


STRUCTURED: dict[str, dict[str, Any]] = {
    "json_schema": {"json_schema": SCHEMA},
    "regex": {"regex": "[A-Z]{2}-[0-9]{4}"},
    "choice": {"choice": ["red", "green", "very dark blue"]},
}
PAR_TEXT = {"regex": "<answer> [ab]{3} </answer> because [cd]{20}"}
PAR_STOPS = {"structured": PAR_TEXT, "stop": ["</answer>"]}
PAR = {"answer_format": "par", "label_match": "exact"}
THOUGHT = {"regex": "<think>\n[ab]{5}\n</think>\n\n[cd]{5}"}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """A random model that has its thoughts and answers put into its mouth by patterns."""
    turns = [{"prompt": "Why?"}, {"messages": [{"role": "user", "content": "How?"}]}]
    label = [{"prompt": "Which?", "label": "aaa"}]
    questions = [{"prompt": f"Question {i}"} for i in range(4)]
    lengths = [{"prompt": "word " * (ORIGINAL + 500)}, {"prompt": "word"}]
    jobs: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        # First, as the engine is made for it: JSON needs an engine that allows no white space.
        **{name: (questions, {"sampling": sampling(structured=how)}) for name, how in STRUCTURED.items()},
        "thinking": (turns, {"prompt": {"enable_thinking": True}, "sampling": sampling(structured=THOUGHT)}),
        "no thinking": (
            turns,
            {"prompt": {"enable_thinking": False}, "sampling": sampling(structured={"regex": "[cd]{5}"})},
        ),
        "par": (label, {"sampling": sampling(**PAR_STOPS), "validation": PAR}),
        "par, stop kept": (
            label,
            {"sampling": sampling(**PAR_STOPS, include_stop_str_in_output=True), "validation": PAR},
        ),
        "par, no stop": (label, {"sampling": sampling(structured=PAR_TEXT), "validation": PAR}),
        "lengths": (lengths, {"sampling": sampling(n=1, max_tokens=4)}),
    }
    return run_jobs(tmp_path_factory.mktemp("qwen3"), models.cached(models.tiny_qwen3), {}, jobs)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    records = [{"prompt": f"Weather in city {i}?", "tools": [WEATHER]} for i in range(8)]
    jobs: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        effort: (records, {"prompt": {"reasoning_effort": effort}, "sampling": sampling(max_tokens=60)})
        for effort in EFFORTS
    }
    jobs["cut"] = (records, {"sampling": sampling(max_tokens=5)})
    model = models.cached(speaking_gpt_oss)
    return run_jobs(tmp_path_factory.mktemp("gpt-oss"), model, {"max_model_len": 1024}, jobs)


def test_thinking_is_asked_for_and_split_off(qwen3: dict[str, Made]) -> None:
    thinking, plain = qwen3["thinking"].rows, qwen3["no thinking"].rows
    assert len(thinking) == len(plain) == 8
    for row in thinking:
        assert row["prompt"].endswith("<|im_start|>assistant\n")
        assert re.fullmatch("[ab]{5}", row["reasoning"])
        assert re.fullmatch("[cd]{5}", row["predict"])
    for row in plain:
        assert row["prompt"].endswith("<think>\n\n</think>\n\n")
        assert row["reasoning"] is None
        assert re.fullmatch("[cd]{5}", row["predict"])


@pytest.mark.parametrize("kept", [True, False])
def test_par_ends_with_the_answer(qwen3: dict[str, Made], kept: bool) -> None:
    """Without the stop string this model goes on with its reasons; with it, they are never generated."""
    rows, whole = qwen3["par, stop kept" if kept else "par"].rows, qwen3["par, no stop"].rows
    assert len(rows) == len(whole) == 4
    for row, long in zip(rows, whole, strict=True):
        assert row["predict"].endswith("</answer>") is kept
        assert "because" not in row["predict"]
        assert row["predict"].startswith(f"<answer> {row['answer']}")
        assert re.fullmatch("[ab]{3}", row["answer"])
        assert row["finish_reason"] == "stop"
        assert "because" in long["predict"]
        assert re.fullmatch("[ab]{3}", long["answer"])
        assert row["completion_tokens"] < long["completion_tokens"]


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_output_always_parses(qwen3: dict[str, Made], name: str) -> None:
    made = qwen3[name]
    texts = [row["predict"] for row in made.rows]
    assert (len(texts), made.errors) == (16, [])
    assert len(set(texts)) > 1
    for text in texts:
        if name == "json_schema":
            validate(json.loads(text), SCHEMA)
        elif name == "regex":
            assert re.fullmatch(STRUCTURED[name]["regex"], text)
        else:
            assert text in STRUCTURED[name]["choice"]


def test_a_prompt_over_the_context_never_reaches_the_engine(qwen3: dict[str, Made]) -> None:
    made = qwen3["lengths"]
    assert [row["original_index"] for row in made.rows] == [1]
    assert [(row["original_index"], row["error"]) for row in made.errors] == [(0, "prompt_too_long")]
    assert str(ORIGINAL) in made.errors[0]["message"]


@pytest.mark.parametrize("effort", EFFORTS)
def test_gpt_oss_thinks_answers_and_calls_tools(gpt_oss: dict[str, Made], effort: str) -> None:
    rows = gpt_oss[effort].rows
    assert (len(rows), gpt_oss[effort].errors) == (32, [])
    assert all(f"Reasoning: {effort}" in row["prompt"] for row in rows)
    assert all("type weather = (_: {" in row["prompt"] for row in rows)
    called = [row["tool_calls"] for row in rows if "tool_calls" in row]
    assert [{"name": "weather", "arguments": {"city": "Rome"}}] in called
    assert any(row["predict"] == "Paris it is" for row in rows)
    assert any("Let me think" in (row["reasoning"] or "") for row in rows)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}


def test_gpt_oss_cut_off_is_kept_as_it_is(gpt_oss: dict[str, Made]) -> None:
    assert {row["finish_reason"] for row in gpt_oss["cut"].rows} == {"length"}
    assert {row["completion_tokens"] for row in gpt_oss["cut"].rows} == {5}


def test_gpt_oss_through_the_whole_flow(run_flow: RunFlow, tmp_path: Path) -> None:
    records = [{"messages": [{"role": "user", "content": f"Weather {i}?"}], "tools": [WEATHER]} for i in range(6)]
    config = _run_config(tmp_path, models.cached(speaking_gpt_oss), records, max_model_len=1024)
    config |= {"prompt": {"reasoning_effort": "low"}, "sampling": sampling(n=3)}
    refused = _run(run_flow, tmp_path, config | {"sampling": sampling(stop=["</answer>"])})
    assert refused.returncode == 1
    assert "sampling.stop: gpt-oss" in refused.stderr
    done = _run(run_flow, tmp_path, config)
    assert done.returncode == 0, done.stderr
    rows = _rows(tmp_path / "out/data.jsonl")
    assert [(r["original_index"], r["sample_id"]) for r in rows] == [(i, s) for i in range(6) for s in range(3)]
    assert any(row.get("tool_calls") for row in rows)


def test_yarn_takes_a_longer_prompt_and_a_shared_prefix_comes_from_the_cache(run_flow: RunFlow, tmp_path: Path) -> None:
    """Longer than the model was made for, through the whole flow; without YaRN see above."""
    records = [{"prompt": "word " * (ORIGINAL + 500) + str(i)} for i in range(2)]
    yarn = {"factor": 2.0, "original_max_position_embeddings": ORIGINAL}
    model = models.cached(models.tiny_qwen3)
    config = _run_config(tmp_path, model, records, yarn=yarn, max_num_seqs=1, max_model_len=10_000)
    done = _run(run_flow, tmp_path, config | {"sampling": sampling(n=1, max_tokens=4, seed=None)})
    assert done.returncode == 0, done.stderr
    rows = _rows(tmp_path / "out/data.jsonl")
    assert [row["prompt_tokens"] > ORIGINAL for row in rows] == [True, True]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert 0.4 < manifest["prefix_cache_share"] < 0.5


def _run_config(folder: Path, model: Path, records: list[dict[str, Any]], **engine: Any) -> dict[str, Any]:
    (folder / "data.jsonl").write_bytes(b"\n".join(map(orjson.dumps, records)))
    return {
        "model": {"source": str(model)},
        "dataset": {"path": str(folder / "data.jsonl")},
        "engine": {"dtype": "float32"} | engine,
        "output": {"path": str(folder / "out")},
    }


def _run(run_flow: RunFlow, folder: Path, config: dict[str, Any]) -> Any:
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return run_flow("--config", str(folder / "run.yaml"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
