"""Servers as engines, against a real vLLM server: what is asked, what comes back, and what a bad day does."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tasks.config import EngineConfig, GenerateConfig
from tasks.engines import openai_server
from tasks.engines.base import Ask, EngineDeadError, EngineSpec, Generated
from tasks.engines.openai_engine import OpenAIEngine
from tasks.engines.served_model import served_model
from tasks.engines.slot import Slot
from tasks.engines.view import EngineView
from tasks.engines.watchdog import complaint
from tasks.errors import RunError
from tasks.records import RecordError
from tests import models
from tests.conftest import RunFlow
from tests.ports import free_port
from tests.prompts.conftest import ASTRONAUT, COFFEE, PHOTOS, conversation, user
from tests.vllm_server import Proxy, vllm_server

pytestmark = pytest.mark.engine

KEY = "sk-secret-0123456789"
CONTEXT = 1024
FLAT = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    options = ["--served-model-name", "tiny-vl", "--max-model-len", str(CONTEXT), "--enable-prompt-tokens-details"]
    # Small models fill JSON with white space where they may.
    options += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with vllm_server(models.cached(models.tiny_qwen25_vl), log, *options) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Proxy:
    return Proxy(server)


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "_BACKOFF", lambda state: 0.05)
    monkeypatch.setattr(openai_server, "MOST_TRIES", 4)


def config(url: str | list[str], **sections: Any) -> GenerateConfig:
    engine = {"kind": "openai", "base_urls": [url] if isinstance(url, str) else url} | sections.pop("engine", {})
    base = {"dataset": {"path": "data.jsonl"}, "output": {"path": "out"}, "engine": engine}
    sections["sampling"] = FLAT | {"max_tokens": 8} | sections.get("sampling", {})
    return GenerateConfig.model_validate(base | sections)


def with_engine(
    settings: GenerateConfig, use: Callable[[OpenAIEngine], Awaitable[Any]], served: str = "tiny-vl"
) -> Any:
    """What `use` makes of a started engine."""

    async def run() -> Any:
        spec = EngineSpec(
            number=0, config=settings, model_path="", key="key", dataset_roots=(str(PHOTOS),), served_model=served
        )
        return await use(await OpenAIEngine.start(spec))

    return asyncio.run(run())


def complete(settings: GenerateConfig, ask: Ask, **fields: Any) -> list[Generated]:
    async def use(engine: OpenAIEngine) -> list[Generated]:
        return await engine.generate("0", engine.prepare(conversation(settings.prompt, **fields)), ask)

    samples: list[Generated] = with_engine(settings, use)
    return samples


def texts(samples: list[Generated]) -> list[str]:
    return [sample.parsed.predict for sample in samples]


def test_n_samples_with_their_own_tokens_the_same_for_the_same_seed(proxy: Proxy) -> None:
    first, again = (complete(config(proxy.url), Ask(n=3, seed=7), prompt="Count to ten.") for _ in range(2))
    assert len(set(texts(first))) == 3
    assert texts(first) == texts(again)
    assert [sample.completion_tokens for sample in first] == [8, 8, 8]
    assert {sample.parsed.finish_reason for sample in first} == {"length"}
    assert first[0].prompt_tokens == again[0].prompt_tokens > 10
    assert again[0].cached_tokens >= 0


def test_only_what_is_set_is_sent(proxy: Proxy) -> None:
    settings = GenerateConfig.model_validate(
        {
            "dataset": {"path": "d"},
            "output": {"path": "o"},
            "engine": {"kind": "openai", "base_urls": [proxy.url]},
            "sampling": {"max_tokens": 4},
        }
    )
    complete(settings, Ask(n=1), prompt="Hi")
    messages = [{"role": "user", "content": "Hi"}]
    assert proxy.bodies == [{"model": "tiny-vl", "max_tokens": 4, "messages": messages}]


def test_all_settings_reach_the_server(proxy: Proxy) -> None:
    sampling = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "stop": ["zzz"],
        "ignore_eos": True,
    }
    prompt = {"enable_thinking": False, "reasoning_effort": "low", "chat_template_kwargs": {"x": 1}}
    engine = {"extra": {"user": "me", "top_p": None}}
    settings = config(proxy.url, sampling=sampling, prompt=prompt, engine=engine)
    complete(settings, Ask(n=1, max_tokens=3), prompt="Hi")
    (body,) = proxy.bodies
    assert {name: body[name] for name in sampling} == sampling
    assert body["chat_template_kwargs"] == {"x": 1, "enable_thinking": False}
    assert (body["reasoning_effort"], body["max_tokens"], body["user"]) == ("low", 3, "me")
    assert "top_p" not in body


def test_images_travel_as_data_and_keep_their_places(proxy: Proxy) -> None:
    uri = "data:image/png;base64," + base64.b64encode(Path(ASTRONAUT).read_bytes()).decode()
    settings = config(proxy.url, prompt={"max_pixels": 40_000})
    fields = {"messages": [user("<image> or <image>?")], "images": ["rocket.jpg", uri]}
    (sample,) = complete(settings, Ask(n=1), **fields)
    content = proxy.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "text", "image_url", "text"]
    assert all(part["image_url"]["url"].startswith("data:image/png;base64,") for part in content[::2])
    pixels = 40_000 // (28 * 28)
    assert 2 * pixels * 0.8 < sample.prompt_tokens < 2 * pixels + 60
    (one,) = complete(config(proxy.url, prompt={"max_pixels": 40_000}), Ask(n=1), prompt="What?", images=["coffee.png"])
    assert one.prompt_tokens < sample.prompt_tokens


def test_videos_and_frames(proxy: Proxy, clip: Path) -> None:
    settings = config(proxy.url, prompt={"media_roots": [str(clip.parent)]})
    (whole,) = complete(settings, Ask(n=1), prompt="What moves?", videos=[str(clip)])
    (frames,) = complete(settings, Ask(n=1), prompt="What moves?", videos=[[COFFEE, COFFEE]])
    assert whole.prompt_tokens > 40
    assert frames.prompt_tokens > 300
    with pytest.raises(RecordError, match="--trust-request-mm-kwargs"):
        complete(settings, Ask(n=1), prompt="What moves?", videos=[[ASTRONAUT] * 33])


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"prompt": "What?", "images": ["none.png"]}, "image_not_found"),
        ({"prompt": "What?", "images": ["data:image/png;base64,iVBORw0K"]}, "image_broken"),
        ({"prompt": "<image><image>", "images": ["coffee.png"]}, "media_count_mismatch"),
        ({"prompt": "What?", "images": ["https://example.org/a.png"]}, "remote_media_not_allowed"),
    ],
)
def test_a_bad_image_is_known_before_anything_is_sent(proxy: Proxy, fields: dict[str, Any], kind: str) -> None:
    with pytest.raises(RecordError, match="line 1") as raised:
        complete(config(proxy.url), Ask(n=1), **fields)
    assert raised.value.kind == kind
    assert not proxy.bodies


SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    "structured", [{"json_schema": SCHEMA}, {"regex": "[ab]{3}-[0-9]{2}"}, {"choice": ["yes", "no"]}], ids=str
)
def test_structured_output_always_parses(server: str, structured: dict[str, Any]) -> None:
    import re

    settings = config(server, sampling={"structured": structured, "max_tokens": 60})
    for text in texts(complete(settings, Ask(n=6), prompt="Answer.")):
        if "json_schema" in structured:
            assert json.loads(text)["n"] in (1, 2)
        elif "regex" in structured:
            assert re.fullmatch(structured["regex"], text)
        elif "choice" in structured:
            assert text in structured["choice"]


@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_ends_the_sample(server: str, include: bool) -> None:
    structured = {"regex": "<answer>[ab]{4}</answer> because"}
    sampling = {"stop": ["</answer>"], "include_stop_str_in_output": include, "structured": structured}
    (text,) = texts(complete(config(server, sampling=sampling | {"max_tokens": 40}), Ask(n=1), prompt="Answer."))
    assert text.endswith("</answer>") is include
    assert "because" not in text


def test_a_base_model_is_asked_for_a_completion(proxy: Proxy) -> None:
    samples = complete(config(proxy.url, prompt={"format": "raw"}), Ask(n=2), prompt="Once upon a time")
    assert len(samples) == 2
    assert proxy.bodies[0]["prompt"] == "Once upon a time"
    assert samples[0].prompt_tokens == 4


def test_a_prompt_too_long_is_an_error_row_and_a_long_answer_is_cut_to_fit(proxy: Proxy) -> None:
    settings = config(proxy.url, sampling={"max_tokens": 1000, "ignore_eos": True})
    with pytest.raises(RecordError, match="line 1") as raised:
        complete(settings, Ask(n=1), prompt="word " * CONTEXT)
    assert raised.value.kind == "prompt_too_long"
    (sample,) = complete(settings, Ask(n=1), prompt="word " * 960)
    assert sample.parsed.finish_reason == "length"
    assert sample.prompt_tokens + sample.completion_tokens == CONTEXT


def test_a_request_that_the_server_takes_for_wrong_is_that_records_error(server: str) -> None:
    with pytest.raises(RecordError, match="400") as raised:
        complete(config(server, engine={"extra": {"logprobs": "many"}}), Ask(n=1), prompt="Hi")
    assert raised.value.kind == "engine_refused"


def test_busy_and_broken_answers_are_tried_again(proxy: Proxy) -> None:
    bad = iter([429, 503, 500, 502])

    def answer(body: dict[str, Any]) -> Any:
        status = next(bad, None)
        return None if status is None else (status, {"Retry-After": "0.2"}, {"error": {"message": "later"}})

    proxy.answer = answer
    began = time.monotonic()
    assert len(complete(config(proxy.url), Ask(n=2), prompt="Hi")) == 2
    assert len(proxy.bodies) == 5
    assert time.monotonic() - began > 0.8


def test_in_flight_finds_what_the_server_takes(proxy: Proxy) -> None:
    proxy.most = 3

    async def use(engine: OpenAIEngine) -> int:
        prepared = engine.prepare(conversation(prompt="Hi"))
        samples = await asyncio.gather(*(engine.generate(str(i), prepared, Ask(n=1)) for i in range(60)))
        assert len(samples) == 60
        return engine._limiter.limit

    limit = with_engine(config(proxy.url), use)
    assert proxy.served == 60
    assert limit <= 8
    assert proxy.refused < 60


def test_one_record_that_breaks_the_server_is_its_own_error(proxy: Proxy) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return (500, {}, {"error": {"message": "boom"}}) if "BREAK" in str(body) else None

    proxy.answer = answer

    async def use(engine: OpenAIEngine) -> list[Any]:
        prompts = ["BREAK", *(f"fine {i}" for i in range(20))]
        prepared = [engine.prepare(conversation(prompt=prompt)) for prompt in prompts]
        asks = (engine.generate(str(i), p, Ask(n=1)) for i, p in enumerate(prepared))
        return await asyncio.gather(*asks, return_exceptions=True)

    broken, *fine = with_engine(config(proxy.url, sampling={"max_tokens": 64}), use)
    assert isinstance(broken, RecordError)
    assert (broken.kind, "boom" in broken.message) == ("server_error", True)
    assert all(isinstance(one, list) for one in fine)


def test_a_server_that_only_breaks_is_dead(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "ONLY_SERVER_SECONDS", 0.3)
    proxy.answer = lambda body: (502, {}, {})
    with pytest.raises(EngineDeadError, match="502"):
        complete(config(proxy.url), Ask(n=1), prompt="Hi")

    async def use(engine: OpenAIEngine) -> None:
        proxy.kill()
        await engine.generate("0", engine.prepare(conversation(prompt="Hi")), Ask(n=1))

    with pytest.raises(EngineDeadError, match=r"127\.0\.0\.1"):
        with_engine(config(proxy.url), use)


def test_the_key_is_sent_and_never_told(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(proxy.url, engine={"api_key_env": "SERVER_KEY"})
    with pytest.raises(RunError, match="SERVER_KEY is not set"):
        served_model("auto", settings.engine)
    monkeypatch.setenv("SERVER_KEY", KEY)
    complete(settings, Ask(n=1), prompt="Hi")
    assert proxy.headers[0]["authorization"] == f"Bearer {KEY}"
    proxy.answer = lambda body: (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with pytest.raises(EngineDeadError, match="api_key_env") as raised:
        complete(settings, Ask(n=1), prompt="Hi")
    assert KEY not in str(raised.value)
    assert KEY not in settings.model_dump_json()


def test_reasoning_and_tool_calls_of_servers_that_parse_them(proxy: Proxy) -> None:
    function = {"name": "weather", "arguments": '{"city": "Rome"}'}
    parsed = {"content": None, "reasoning_content": "hm", "tool_calls": [{"id": "1", "function": function}]}
    choices = [
        {"index": 1, "message": {"content": "<think>aha</think>\n\nRome"}, "finish_reason": "stop"},
        {"index": 0, "message": parsed, "finish_reason": "tool_calls"},
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 30, "prompt_tokens_details": {"cached_tokens": 4}}
    proxy.answer = lambda body: (200, {}, {"choices": choices, "usage": usage})
    calling, thinking = complete(config(proxy.url), Ask(n=2), prompt="Weather?", tools=[function])
    assert (calling.parsed.predict, calling.parsed.reasoning) == ("", "hm")
    assert calling.parsed.extra["tool_calls"] == [{"name": "weather", "arguments": {"city": "Rome"}}]
    assert (thinking.parsed.predict, thinking.parsed.reasoning) == ("Rome", "aha")
    assert calling.completion_tokens + thinking.completion_tokens == 30
    assert (calling.prompt_tokens, calling.cached_tokens) == (9, 4)
    assert proxy.bodies[0]["tools"] == [{"type": "function", "function": function}]


def test_a_server_that_gives_one_sample_a_request_is_asked_again(proxy: Proxy) -> None:
    def answer(body: dict[str, Any]) -> Any:
        choice = {"message": {"content": str(body.get("seed"))}, "finish_reason": "stop"}
        return 200, {}, {"choices": [choice], "usage": {"completion_tokens": 1, "prompt_tokens": 1}}

    proxy.answer = answer
    assert texts(complete(config(proxy.url), Ask(n=3, seed=5), prompt="Hi")) == ["5", "6", "7"]


def test_the_servers_token_count_is_a_sign_of_life(server: str) -> None:
    async def use(engine: OpenAIEngine) -> list[Any]:
        await engine.generate("0", engine.prepare(conversation(prompt="Hi")), Ask(n=1))
        return [await engine._server.generated_tokens(), engine.stats().tokens]

    server_tokens, own = with_engine(config(server), use)
    assert server_tokens >= own == 8


def test_an_answer_that_takes_long_is_no_hang_while_the_server_makes_tokens() -> None:
    slot = Slot(EngineView(0))
    slot.begin(0)
    stats = {"tokens": 0, "running": 1, "in_flight": 1, "kv_cache_usage": 0.0}
    slot.note(stats | {"server_tokens": 5.0})
    for tokens, alive in ((5.0, False), (6.0, True), (6.0, False)):
        slot.alive_at = 0.0
        slot.note(stats | {"server_tokens": tokens})
        assert (slot.alive_at > 0) is alive


def test_a_server_that_counts_no_tokens_is_given_longer_for_an_answer(proxy: Proxy) -> None:
    async def use(engine: OpenAIEngine) -> Any:
        return engine.stats().detail  # the proxy has no metrics

    stats = {"tokens": 0, "running": 1, "in_flight": 1, "kv_cache_usage": 0.0, **with_engine(config(proxy.url), use)}
    slot = Slot(EngineView(0, state="running"))
    slot.begin(0)
    engine = EngineConfig(stall_timeout=10)
    for answers_only, limit in ((True, 120), (False, 10)):
        slot.note(stats | {"answers_only": stats["answers_only"] and answers_only})
        assert complaint(slot, engine, slot.alive_at + limit) is None
        assert f"no token for {limit} s" in str(complaint(slot, engine, slot.alive_at + limit + 1))


def test_which_model_it_is(server: str, proxy: Proxy) -> None:
    served = served_model("auto", config(server).engine)
    assert (served.source, served.path) == ("tiny-vl", "")
    assert served == served_model("tiny-vl", config(proxy.url).engine)
    gone = f"http://127.0.0.1:{free_port()}/v1"
    assert served == served_model("auto", config([gone, server]).engine)
    with pytest.raises(RunError, match="does not serve other, but tiny-vl"):
        served_model("other", config(server).engine)
    with pytest.raises(RunError, match="no server answers"):
        served_model("auto", config(gone).engine)
    with pytest.raises(RunError, match="end in /v1"):
        served_model("auto", config(server.removesuffix("/v1")).engine)


def test_a_whole_run_survives_a_server_that_dies(
    server: str, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers, one of which is switched off half-way: every sample once, and the key nowhere to be found."""
    first, second = Proxy(server), Proxy(server)
    records = [{"prompt": f"Question {i}"} for i in range(60)]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(map(orjson.dumps, records)))
    urls = json.dumps([first.url, second.url])
    arguments = [
        *("--dataset.path", str(tmp_path / "data.jsonl"), "--output.path", str(tmp_path / "out")),
        *("--engine.kind", "openai", "--engine.base_urls", urls, "--engine.api_key_env", "SERVER_KEY"),
        *("--dataset.shard_size", "4", "--sampling.n", "2", "--sampling.max_tokens", "16", "--sampling.seed", "3"),
        *("--engine.max_num_seqs", "8", "--output.chunk_seconds", "0.2"),
    ]

    def kill_half_way() -> None:
        while first.served < 10:
            time.sleep(0.02)
        first.kill()

    threading.Thread(target=kill_half_way, daemon=True).start()
    done = run_flow(*arguments, environment={"SERVER_KEY": KEY})
    assert done.returncode == 0, done.stderr
    rows = [orjson.loads(line) for line in (tmp_path / "out/data.jsonl").read_bytes().splitlines()]
    assert [(r["original_index"], r["sample_id"]) for r in rows] == [(i, s) for i in range(60) for s in range(2)]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["model"]["source"] == "tiny-vl"
    assert any(first.url in step for step in manifest["this_run"]["steps"])
    assert first.served + second.served < 60 + 20
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    before = second.served
    assert run_flow(*arguments, environment={"SERVER_KEY": KEY}).returncode == 0
    assert second.served == before
