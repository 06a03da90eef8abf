"""Chat templates with real tokenizers: Qwen3's (thinking on and off, tools), and base models without a template."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tasks.config import PromptConfig
from tasks.prompts import detect_family, make_format
from tasks.prompts.base import Completion, Parsed, Prompt, PromptFormat
from tasks.prompts.chat import ChatFormat, RawFormat, parse_thinking
from tasks.records import RecordError
from tests.models import cached, qwen3_tokenizer
from tests.prompts.conftest import conversation, user

THINKING_OFF = "<think>\n\n</think>\n\n"
TOOL = {"type": "function", "function": {"name": "add", "description": "a + b", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("qwen3") / "model"
    shutil.copytree(cached(qwen3_tokenizer), folder)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    return str(folder)


@pytest.fixture(scope="module")
def chat(qwen3: str) -> PromptFormat:
    return make(qwen3)


@lru_cache
def make(folder: str, **settings: Any) -> PromptFormat:
    return make_format(folder, PromptConfig(**settings), [])


@pytest.fixture(scope="module")
def tokenizer(qwen3: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(qwen3)


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Hi")],
    "a system turn": [{"role": "system", "content": "Be kind."}, user("Hi")],
    "several turns": [user("2+2?"), {"role": "assistant", "content": "4"}, user("3+3?")],
    "reasoning in the history": [
        user("2+2?"),
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"},
        user("3+3?"),
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("thinking", [None, True, False])
def test_prompt_is_the_templates(name: str, thinking: bool | None, qwen3: str, tokenizer: Any) -> None:
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    expected = tokenizer.apply_chat_template(CONVERSATIONS[name], tokenize=False, add_generation_prompt=True, **kwargs)
    prompt = make(qwen3, enable_thinking=thinking).render(conversation(messages=CONVERSATIONS[name]))
    assert prompt.text == expected
    assert prompt.token_ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert prompt.length == len(prompt.token_ids)
    assert prompt.text.endswith(THINKING_OFF) == (thinking is False)
    assert not prompt.multi_modal_data


def test_template_arguments_of_the_config(qwen3: str) -> None:
    settings = PromptConfig(chat_template_kwargs={"enable_thinking": False})
    prompt = make_format(qwen3, settings, []).render(conversation(prompt="Hi"))
    assert prompt.text.endswith(THINKING_OFF)


def test_parts_of_text_are_joined(chat: PromptFormat) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat.render(conversation(messages=[user(parts)])) == chat.render(conversation(prompt="Hello"))


def test_tools_calls_and_results(chat: PromptFormat) -> None:
    """OpenAI's form: no content beside a call, arguments as JSON text; they must not be quoted twice."""
    messages = [
        user("1 + 2?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    text = chat.render(conversation(messages=messages, tools=[TOOL])).text
    assert json.dumps(TOOL) in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in text
    assert "<tool_response>\n3\n</tool_response>" in text


def test_tools_may_be_json_text(chat: PromptFormat) -> None:
    assert chat.render(conversation(prompt="x", tools=json.dumps([TOOL]))) == chat.render(
        conversation(prompt="x", tools=[TOOL])
    )
    assert chat.render(conversation(prompt="x", tools="")) == chat.render(conversation(prompt="x"))


def test_calls_in_the_words_of_old(chat: PromptFormat) -> None:
    call = {"name": "add", "arguments": '{"a": 1}'}
    old = [user("x"), {"role": "assistant", "content": None, "function_call": call}]
    old.append({"role": "function", "name": "add", "content": "3"})
    text = chat.render(conversation(messages=old)).text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "<tool_response>\n3\n</tool_response>" in text


def test_a_developers_turn_is_the_systems_where_the_template_knows_none(chat: PromptFormat) -> None:
    text = chat.render(conversation(messages=[{"role": "developer", "content": "Be brief."}, user("x")])).text
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


@pytest.mark.parametrize("arguments", ["{oops", "", {"a": 1}, None])
def test_odd_arguments_are_rendered(arguments: Any, chat: PromptFormat) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [user("x"), {"role": "assistant", "content": "", "tool_calls": [call]}, user("y")]
    assert '"name": "add"' in chat.render(conversation(messages=messages)).text


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"messages": [user([{"type": "image", "image": "a.png"}])]}, "unsupported_media"),
        ({"prompt": "x", "images": ["a.png"]}, "unsupported_media"),
        ({"prompt": "x", "videos": "a.mp4"}, "unsupported_media"),
        ({"prompt": "a \ud800 b"}, "malformed_record"),
        ({"prompt": "x", "tools": [{"f": {1, 2}}]}, "template_error"),
        ({"prompt": "x", "tools": {"f": 1}}, "malformed_record"),
    ],
)
def test_what_a_text_model_cannot_take(fields: dict[str, Any], kind: str, chat: PromptFormat) -> None:
    with pytest.raises(RecordError, match=r"data\.jsonl line 1") as caught:
        chat.render(conversation(**fields))
    assert caught.value.kind == kind


def test_template_that_refuses(qwen3: str, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(qwen3, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RecordError, match="roles must alternate") as caught:
        make(str(folder)).render(conversation(prompt="x"))
    assert caught.value.kind == "template_error"


def test_renders_in_threads_as_alone(chat: PromptFormat) -> None:
    records = [conversation(prompt=f"Question {number}: {'word ' * number}") for number in range(64)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(chat.render, records)) == [chat.render(record) for record in records]


THINKING: dict[str, tuple[str, str, str, Parsed]] = {
    "the model opens and closes": ("assistant\n", "<think>\nhm\n</think>\n\nyes", "stop", Parsed("yes", "hm", "stop")),
    "the template opened": ("assistant\n<think>\n", "hm\n</think>\n\nyes", "stop", Parsed("yes", "hm", "stop")),
    "both open": ("assistant\n<think>\n", "<think>hm</think>yes", "stop", Parsed("yes", "hm", "stop")),
    "never closed": ("assistant\n", "<think>\nhm and", "length", Parsed("", "hm and", "length")),
    "never closed, the template opened": ("<think>\n", "hm and", "length", Parsed("", "hm and", "length")),
    "none": ("assistant\n", "yes", "stop", Parsed("yes", None, "stop")),
    "switched off": (f"assistant\n{THINKING_OFF}", "yes", "stop", Parsed("yes", None, "stop")),
    "empty": ("assistant\n", "<think>\n\n</think>\n\nyes", "stop", Parsed("yes", "", "stop")),
    "closed by a template that hides the opening": (
        "assistant\n",
        "hm</think>yes",
        "stop",
        Parsed("yes", "hm", "stop"),
    ),
    "an answer that keeps its white space": ("assistant\n", "  yes\n", "stop", Parsed("  yes\n", None, "stop")),
    "two thoughts": ("a", "<think>1</think>x<think>2</think>", "stop", Parsed("x<think>2</think>", "1", "stop")),
}


@pytest.mark.parametrize("case", THINKING)
def test_thinking_is_split_off(case: str) -> None:
    prompt, text, finish_reason, expected = THINKING[case]
    assert parse_thinking(Completion(text, [], finish_reason), Prompt(prompt, [], 0)) == expected


def test_structured_output_is_no_thought() -> None:
    """A template may open `<think>`; where a grammar holds from the first token on, none can follow."""
    completion = Completion('{"a": 1}', [], "stop", structured=True)
    assert parse_thinking(completion, Prompt("assistant\n<think>\n", [], 0)) == Parsed('{"a": 1}', None, "stop")


def test_format_follows_the_models_files(qwen3: str, tmp_path: Path) -> None:
    assert detect_family(qwen3) == "chat"
    assert isinstance(make(qwen3), ChatFormat)
    assert isinstance(make(qwen3, format="raw"), RawFormat)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert detect_family(str(tmp_path)) == "raw"


def test_raw_prompt_is_as_it_is(qwen3: str, tokenizer: Any) -> None:
    raw = make(qwen3, format="raw")
    prompt = raw.render(conversation(prompt="Once upon a time\n"))
    assert (prompt.text, prompt.token_ids) == ("Once upon a time\n", tokenizer("Once upon a time\n")["input_ids"])
    assert raw.parse(Completion("there was", [], "stop"), prompt) == Parsed("there was", None, "stop")


def test_raw_takes_one_turn(qwen3: str) -> None:
    messages = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    with pytest.raises(RecordError, match="has 3") as caught:
        make(qwen3, format="raw").render(conversation(messages=messages))
    assert caught.value.kind == "malformed_record"
