"""Answers that no well-behaved server gives, and gateways do: each is read, tried again, or one record's error."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest

from tasks.engines import openai_server
from tasks.engines.base import Ask, EngineDeadError, Generated
from tasks.engines.openai_engine import OpenAIEngine
from tasks.records import Json, RecordError
from tests.engines.test_openai_engine import config, with_engine
from tests.prompts.conftest import conversation
from tests.vllm_server import Proxy

MODELS = b'{"data": [{"id": "m"}]}'


def completion(message: Json | None = None, usage: Any = None) -> Json:
    message = message or {"role": "assistant", "content": "hello"}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


class Script(Proxy):
    """A server of its own that gives these answers in order, then good ones: a status, and JSON or bytes."""

    def __init__(self, *answers: tuple[int, Any], models: bytes = MODELS) -> None:
        super().__init__("http://nowhere")
        self._answers = list(answers)
        self._models = models

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not path.endswith("completions"):
            return (200, {}, self._models) if path.endswith("/models") else (404, {}, b"")
        self.served += 1
        status, answer = self._answers.pop(0) if self._answers else (200, completion())
        return status, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode()


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_server, "_BACKOFF", lambda state: 0.01)
    monkeypatch.setattr(openai_server, "MOST_TRIES", 3)


def ask(server: Script, times: int = 1) -> list[Generated]:
    """The samples of so many requests, one after the other."""

    async def use(engine: OpenAIEngine) -> list[Generated]:
        prepared = engine.prepare(conversation(prompt="Hi"))
        return [sample for i in range(times) for sample in await engine.generate(str(i), prepared, Ask(n=1))]

    samples: list[Generated] = with_engine(config(server.url), use, served="m")
    return samples


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "Provider returned error", "code": 502}},
        {"error": {"message": "Provider returned error", "code": "503"}},
        {"error": {"message": "Provider returned error", "code": None}},
        {"error": "later"},
        {},
        [1, 2],
        "oops",
        None,
        {"choices": [None]},
        {"choices": "none"},
        b"<html>gateway</html>",
        b"[" * 100_000,
    ],
    ids=lambda answer: str(answer)[:40],
)
def test_what_is_no_completion_is_tried_again(answer: Any) -> None:
    server = Script((200, answer))
    assert [sample.parsed.predict for sample in ask(server)] == ["hello"]
    assert server.served == 2


def test_an_error_that_comes_as_a_success_is_told_as_the_server_says_it() -> None:
    long = {"error": {"message": "maximum context length exceeded", "code": 400}}
    with pytest.raises(RecordError, match="with an error: maximum context length exceeded") as raised:
        ask(Script((200, long), (200, long)))
    assert raised.value.kind == "prompt_too_long"
    with pytest.raises(EngineDeadError, match="no credit left"):
        ask(Script((200, {"error": {"message": "no credit left", "code": 402}})))
    with pytest.raises(EngineDeadError, match="upstream is down"):
        ask(Script(*[(200, {"error": {"message": "upstream is down"}})] * 3))


@pytest.mark.parametrize(("status", "words"), [(403, "flagged by moderation"), (404, "no such deployment")])
def test_one_request_that_is_forbidden_is_its_records_error_once_the_server_has_answered(
    status: int, words: str
) -> None:
    refusal = status, {"error": {"message": words}}
    with pytest.raises(RecordError, match=f"line 1: .*{status}: {words}") as raised:
        ask(Script((200, completion()), refusal), times=2)
    assert raised.value.kind == "engine_refused"
    with pytest.raises(EngineDeadError, match=words):
        ask(Script(refusal))
    with pytest.raises(EngineDeadError, match=words):
        ask(Script((200, completion()), (401, refusal[1])), times=2)


def test_a_key_that_is_taken_back_is_no_fault_of_all_records() -> None:
    server = Script((200, completion()), *[(403, {"error": {"message": "revoked"}})] * 100)

    async def use(engine: OpenAIEngine) -> int:
        prepared = engine.prepare(conversation(prompt="Hi"))
        for number in range(100):
            with contextlib.suppress(RecordError):
                await engine.generate(str(number), prepared, Ask(n=1))
        return server.served

    with pytest.raises(EngineDeadError, match="revoked"):
        with_engine(config(server.url), use, served="m")
    assert server.served == 1 + openai_server.MOST_FORBIDDEN + 1


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        *((7.5, 7), ("7", 7), ("7.5", 7), (7, 7), (0, 0)),
        *((None, 0), ("many", 0), (-1, 0), ([7], 0), ({}, 0), (1e300, 0), (float("inf"), 0), ("nan", 0)),
    ],
    ids=str,
)
def test_counts_of_tokens_are_whole_numbers_whatever_the_server_tells(told: Any, tokens: int) -> None:
    usage = {"completion_tokens": told, "prompt_tokens": told, "prompt_tokens_details": {"cached_tokens": told}}
    (sample,) = ask(Script((200, completion(usage=usage))))
    counts = (sample.completion_tokens, sample.prompt_tokens, sample.cached_tokens)
    assert orjson.dumps(counts) == orjson.dumps([tokens] * 3)


@pytest.mark.parametrize("usage", [None, "7", [7], {"prompt_tokens_details": [7]}], ids=str)
def test_a_usage_that_is_none_counts_nothing(usage: Any) -> None:
    (sample,) = ask(Script((200, completion(usage=usage))))
    assert (sample.parsed.predict, sample.completion_tokens) == ("hello", 0)


@pytest.mark.parametrize(
    ("message", "predict", "extra"),
    [
        ({"content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]}, "one two", {}),
        ({"content": [None, {"type": "thinking", "thinking": []}, {"text": "two"}]}, "two", {}),
        ({"content": {"n": 4}}, '{"n":4}', {}),
        ({"content": "hi", "tool_calls": [None]}, "hi", {}),
        (
            {"content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
            "",
            {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        ),
    ],
)
def test_messages_of_other_shapes(message: Json, predict: str, extra: Json) -> None:
    (sample,) = ask(Script((200, completion(message))))
    assert (sample.parsed.predict, sample.parsed.extra) == (predict, extra)


@pytest.mark.parametrize(
    ("body", "predict"),
    [
        (b"\xef\xbb\xbf" + orjson.dumps(completion()), "hello"),
        (orjson.dumps(completion()).replace(b'"index"', b'"logprob": NaN, "index"'), "hello"),
        (orjson.dumps(completion()).replace(b"hello", rb"\ud83d hello"), "? hello"),
    ],
    ids=["BOM", "NaN", "surrogate"],
)
def test_json_that_is_not_strict_is_read(body: bytes, predict: str) -> None:
    server = Script((200, body))
    assert [sample.parsed.predict for sample in ask(server)] == [predict]
    assert server.served == 1


@pytest.mark.parametrize(
    "models", [b"<html>starting</html>", b"{}", b"[]", b'{"data": null}', b'{"data": ["m"]}', b'{"data": [{}]}']
)
def test_a_server_that_lists_no_models_yet_does_not_answer_yet(models: bytes) -> None:
    with pytest.raises(EngineDeadError, match="does not answer with a list of models"):
        ask(Script(models=models))
