"""A vision run as a user starts it: 200 records, of which 20 are bad in ten ways, on a real Qwen2.5-VL engine."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from PIL import Image

from tests import models
from tests.conftest import RunFlow
from tests.prompts.conftest import ASTRONAUT, COFFEE, ROCKET, user

pytestmark = pytest.mark.engine

N = 2
RECORDS, EVERY = 200, 10
CONTEXT = 1024
# Ways to be bad, and the kinds of their error rows.
BAD: dict[str, str] = {
    '{"prompt": "What is this?", "images": ["photos/broken.png"]}': "image_broken",
    json.dumps({"prompt": "Which?", "images": ["photos/0.png"] * 4}): "engine_refused",  # of three at most
    '{"prompt": "What is this?", "images": ["photos/missing.png"]}': "image_not_found",
    '{"prompt": "What is this?", "images": ["photos/text.png"]}': "image_broken",
    '{"prompt": "What is this?", "images": ["photos/dot.png"]}': "image_too_small",
    '{"prompt": "<image> or <image>?", "images": ["photos/0.png"]}': "media_count_mismatch",
    json.dumps({"prompt": "long " * 2 * CONTEXT, "images": ["photos/0.png"]}): "prompt_too_long",
    '{"prompt": "What is this?", "images": [': "malformed_record",
    '{"prompt": "  "}': "empty_prompt",
    '{"messages": [{"role": "narrator", "content": "What is this?"}]}': "malformed_record",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    _write_photos(folder / "photos")
    (folder / "clip.mp4").write_bytes(clip.read_bytes())
    bad = list(BAD)
    lines = [
        bad[number // EVERY % len(bad)] if number % EVERY == 7 else json.dumps(_good(number, folder))
        for number in range(RECORDS)
    ]
    (folder / "data.jsonl").write_text("\n".join(lines))
    config = {
        "model": {"source": str(models.cached(models.tiny_qwen25_vl))},
        "dataset": {"path": str(folder / "data.jsonl"), "shard_size": 50, "label_field": "label"},
        "prompt": {"max_pixels": 20_000},
        "sampling": {"n": N, "max_tokens": 3, "temperature": 1.0, "structured": {"choice": ["cat", "dog"]}},
        "engine": {"dtype": "float32", "max_model_len": CONTEXT, "limit_mm_per_prompt": {"image": 3, "video": 1}},
        "output": {"path": str(folder / "out")},
        "validation": {"max_error_rate": 0.1, "label_match": "exact"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def finished(workspace: Path, run_flow: RunFlow) -> Path:
    done = run_flow("--config", str(workspace / "run.yaml"))
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    return workspace / "out"


def test_each_bad_record_is_an_error_row_of_its_kind_and_all_others_are_made(finished: Path) -> None:
    samples, errors = _rows(finished / "data.jsonl"), _rows(finished / "errors.jsonl")
    kinds = list(BAD.values())
    expected = [
        (number, sample, kinds[number // EVERY % len(kinds)])
        for number in range(7, RECORDS, EVERY)
        for sample in range(N)
    ]
    assert [(r["original_index"], r["sample_id"], r["error"]) for r in errors] == expected
    good = [(number, sample) for number in range(RECORDS) if number % EVERY != 7 for sample in range(N)]
    assert [(r["original_index"], r["sample_id"]) for r in samples] == good
    assert (len(samples), len(errors)) == (180 * N, 20 * N)
    for row in errors:
        assert f"data.jsonl line {row['original_index'] + 1}" in row["message"]


def test_media_are_seen(finished: Path) -> None:
    """Rows of records with 0, 1 and 3 images, a video and a list of frames, each in its place in the prompt."""
    rows = {row["original_index"]: row for row in _rows(finished / "data.jsonl")}
    assert "<|image_pad|>" not in rows[0]["prompt"]
    assert "user\n<|vision_start|><|image_pad|><|vision_end|>What is this?" in rows[1]["prompt"]
    assert rows[2]["prompt"].count("<|image_pad|>") == 3
    assert "Compare <|vision_start|><|image_pad|><|vision_end|> and <|vision" in rows[2]["prompt"]
    assert rows[3]["prompt"].count("<|video_pad|>") == rows[4]["prompt"].count("<|video_pad|>") == 1
    one, three = (rows[number]["prompt_tokens"] for number in (1, 2))
    assert one - rows[0]["prompt_tokens"] > 10
    assert three > one + 20
    assert rows[5]["prompt_tokens"] > one  # min_pixels of its own
    assert {row["predict"] for row in rows.values()} == {"cat", "dog"}


def test_accuracy_pass_at_k_and_the_majority_are_told(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    rows = _rows(finished / "data.jsonl")
    right = Counter(row["original_index"] for row in rows if row["predict"] == row["label"])
    metrics = manifest["metrics"]
    assert metrics["accuracy"] == pytest.approx(sum(right.values()) / len(rows), abs=1e-6)
    assert metrics["pass@1"] == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert metrics["pass@2"] == pytest.approx(len(right) / 180, abs=1e-6)
    assert metrics["accuracy"] - 0.25 < metrics["majority_accuracy"] < metrics["pass@2"]
    assert (manifest["samples"], manifest["errors"]) == (180 * N, 20 * N)


def test_the_gate_shut_fails_the_same_run(workspace: Path, finished: Path, run_flow: RunFlow) -> None:
    done = run_flow("--config", str(workspace / "run.yaml"), "--validation.max_error_rate", "0.09")
    assert done.returncode == 1
    assert "40 of 400 samples are errors" in done.stderr
    assert len(_rows(finished / "data.jsonl")) == 180 * N


def _good(number: int, folder: Path) -> dict[str, Any]:
    photos = [f"photos/{i}.png" for i in range(3)]
    encoded = base64.b64encode((folder / photos[0]).read_bytes()).decode()
    turns = [user("Compare <image> and <image>"), {"role": "assistant", "content": "Yes"}, user("<image> Now?")]
    typed = [{"type": "image", "image": photos[number % 3], "min_pixels": 16_000}, {"type": "text", "text": "This?"}]
    shapes: list[dict[str, Any]] = [
        {"prompt": "What is a photograph?"},
        {"prompt": "What is this?", "images": [photos[number % 3]]},
        {"messages": turns, "images": photos},
        {"prompt": "<video>What moves?", "videos": ["clip.mp4"]} if number < 20 else {"prompt": f"Tell {number}"},
        {"prompt": "What moves?", "videos": [photos[:2]]},
        {"messages": [user(typed)]},
        {"prompt": "What is this?", "images": f"file://{folder}/{photos[1]}"},
        {"prompt": "What is this?<image>", "images": [f"data:image/png;base64,{encoded}"]},
    ]
    return {**shapes[number % len(shapes)], "label": "cat"}


def _write_photos(folder: Path) -> None:
    folder.mkdir()
    for number, source in enumerate((ASTRONAUT, COFFEE, ROCKET)):
        Image.open(source).convert("RGB").resize((112, 84)).save(folder / f"{number}.png")
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("I am no image")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
