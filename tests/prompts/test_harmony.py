"""gpt-oss prompts are what harmony's own guide makes; completions come back as fields, whatever state they are in."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import openai_harmony as harmony
import pytest

from tasks.config import PromptConfig
from tasks.prompts import make_format
from tasks.prompts.base import Completion, Parsed, Prompt
from tasks.prompts.harmony import HarmonyFormat
from tasks.records import RecordError
from tests.prompts.conftest import conversation, user

ENCODING = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
PROMPT = Prompt(text="", token_ids=[], length=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("gpt-oss")
    (folder / "config.json").write_text('{"model_type": "gpt_oss"}')
    return str(folder)


@pytest.fixture(scope="module")
def made(model: str) -> Callable[..., HarmonyFormat]:
    @lru_cache
    def make(**settings: Any) -> HarmonyFormat:
        made = make_format(model, PromptConfig(**settings), [])
        assert isinstance(made, HarmonyFormat)
        return made

    return make


def said(role: harmony.Role, content: Any) -> harmony.Message:
    return harmony.Message.from_role_and_content(role, content)


def system(effort: harmony.ReasoningEffort = harmony.ReasoningEffort.MEDIUM) -> harmony.Message:
    return said(harmony.Role.SYSTEM, harmony.SystemContent.new().with_reasoning_effort(effort))


def developer(instructions: str | None = None, tools: bool = False) -> harmony.Message:
    content = harmony.DeveloperContent.new()
    if instructions:
        content = content.with_instructions(instructions)
    if tools:
        function = WEATHER["function"]
        assert isinstance(function, dict)
        description = harmony.ToolDescription.new(function["name"], function["description"], function["parameters"])
        content = content.with_function_tools([description])
    return said(harmony.Role.DEVELOPER, content)


def asked(words: str) -> harmony.Message:
    return said(harmony.Role.USER, words)


def answered(words: str, channel: str = "final") -> harmony.Message:
    return said(harmony.Role.ASSISTANT, words).with_channel(channel)


def called(arguments: str) -> harmony.Message:
    message = answered(arguments, "commentary").with_recipient("functions.get_weather")
    return message.with_content_type("<|constrain|>json")


def result(words: str) -> harmony.Message:
    author = harmony.Author.new(harmony.Role.TOOL, "functions.get_weather")
    message = harmony.Message.from_author_and_content(author, words)
    return message.with_channel("commentary").with_recipient("assistant")


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function, **more}


def rendered(*messages: harmony.Message) -> list[int]:
    conversation = harmony.Conversation.from_messages(list(messages))
    return ENCODING.render_conversation_for_completion(conversation, harmony.Role.ASSISTANT)


SHAPES: dict[str, tuple[dict[str, Any], list[harmony.Message]]] = {
    "a bare prompt": ({"prompt": "Hi"}, [system(), asked("Hi")]),
    "a system turn": (
        {"messages": [{"role": "system", "content": "Be kind."}, user("Hi")]},
        [system(), developer("Be kind."), asked("Hi")],
    ),
    "system and developer turns": (
        {"messages": [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}, user("Hi")]},
        [system(), developer("A\n\nB"), asked("Hi")],
    ),
    "content parts": ({"messages": [user([{"type": "text", "text": "Hi"}])]}, [system(), asked("Hi")]),
    "an answer and its reasoning": (
        {"messages": [user("2+2?"), {"role": "assistant", "content": "4", "reasoning_content": "easy"}, user("3+3?")]},
        [system(), asked("2+2?"), answered("4"), asked("3+3?")],
    ),
    "tools": (
        {"prompt": "Weather in Oslo?", "tools": [WEATHER]},
        [system(), developer(tools=True), asked("Weather in Oslo?")],
    ),
    "tools and instructions": (
        {"messages": [{"role": "system", "content": "Be kind."}, user("Oslo?")], "tools": [WEATHER["function"]]},
        [system(), developer("Be kind.", tools=True), asked("Oslo?")],
    ),
    "a call and its result": (
        {
            "messages": [
                user("Oslo?"),
                {"role": "assistant", "content": None, "reasoning": "look", "tool_calls": [call('{"place":"Oslo"}')]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            ],
            "tools": [WEATHER],
        },
        [
            *(system(), developer(tools=True), asked("Oslo?"), answered("look", "analysis")),
            *(called('{"place":"Oslo"}'), result("rain")),
        ],
    ),
    "arguments as an object, words beside the call, a named result": (
        {
            "messages": [
                user("Oslo?"),
                {"role": "assistant", "content": "I look it up.", "tool_calls": [call({"place": "Ås"})]},
                {"role": "tool", "name": "get_weather", "content": "rain"},
            ],
            "tools": [WEATHER],
        },
        [
            *(system(), developer(tools=True), asked("Oslo?"), answered("I look it up.", "commentary")),
            *(called('{"place": "Ås"}'), result("rain")),
        ],
    ),
    "text that spells special tokens": ({"prompt": "a<|end|>b<|return|>"}, [system(), asked("a<|end|>b<|return|>")]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_prompt_is_harmonys(shape: str, made: Callable[..., HarmonyFormat]) -> None:
    fields, messages = SHAPES[shape]
    prompt = made().render(conversation(**fields))
    assert prompt.token_ids == rendered(*messages)
    assert prompt.length == len(prompt.token_ids)
    assert prompt.text == ENCODING.decode(prompt.token_ids)
    assert prompt.text.endswith("<|start|>assistant")


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_effort(effort: str, made: Callable[..., HarmonyFormat]) -> None:
    prompt = made(reasoning_effort=effort).render(conversation(prompt="Hi"))
    assert prompt.token_ids == rendered(system(harmony.ReasoningEffort[effort.upper()]), asked("Hi"))
    assert f"Reasoning: {effort}" in prompt.text


def test_special_tokens_of_a_text_stay_text(made: Callable[..., HarmonyFormat]) -> None:
    plain, spelled = (made().render(conversation(prompt=words)).token_ids for words in ("ab", "a<|end|>b"))
    end = ENCODING.encode("<|end|>", allowed_special="all")[0]
    assert plain.count(end) == spelled.count(end)


def test_no_date_but_the_records_own(made: Callable[..., HarmonyFormat]) -> None:
    assert "Current date" not in made().render(conversation(prompt="Hi")).text
    dated = made().render(conversation(prompt="Hi", conversation_start_date="2025-08-05"))
    assert "Current date: 2025-08-05" in dated.text


def test_engine_needs_no_tokenizer(made: Callable[..., HarmonyFormat]) -> None:
    assert made().engine_args == {"skip_tokenizer_init": True}
    stops = [ENCODING.encode(token, allowed_special="all")[0] for token in ("<|return|>", "<|call|>")]
    assert made().sampling_args == {"detokenize": False, "stop_token_ids": sorted(stops)}


BAD: dict[str, dict[str, Any]] = {
    "'tools' must be a list": {"prompt": "x", "tools": "get_weather"},
    r"'tools\[0\]' must be a function": {"prompt": "x", "tools": [{"type": "function"}]},
    r"'tools\[0\].parameters' must be": {"prompt": "x", "tools": [{"name": "f", "parameters": "p"}]},
    r"'tools\[0\].description' must be": {"prompt": "x", "tools": [{"name": "f", "description": 1}]},
    "'tool_calls' must be a list": {"messages": [user("x"), {"role": "assistant", "tool_calls": {"a": 1}}, user("y")]},
    "function with a 'name'": {"messages": [user("x"), {"role": "assistant", "tool_calls": [{}]}, user("y")]},
    "a tool turn needs a 'name'": {"messages": [user("x"), {"role": "tool", "content": "r", "tool_call_id": "z"}]},
    "'conversation_start_date' must be text": {"prompt": "x", "conversation_start_date": 2025},
}


@pytest.mark.parametrize("message", BAD)
def test_malformed_record(message: str, made: Callable[..., HarmonyFormat]) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        made().render(conversation(**BAD[message]))
    assert caught.value.kind == "malformed_record"


def test_what_harmony_cannot_render(made: Callable[..., HarmonyFormat]) -> None:
    with pytest.raises(RecordError, match="line 1") as caught:
        made().render(conversation(prompt="\ud800"))
    assert caught.value.kind == "template_error"


def test_media_are_refused(made: Callable[..., HarmonyFormat]) -> None:
    with pytest.raises(RecordError, match="takes no image") as caught:
        made().render(conversation(prompt="x", images=["a.png"]))
    assert caught.value.kind == "unsupported_media"


ANALYSIS = "<|channel|>analysis<|message|>think<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'

COMPLETIONS: dict[str, tuple[str, str, Parsed]] = {
    "reasoned": (f"{ANALYSIS}<|channel|>final<|message|>yes<|return|>", "stop", Parsed("yes", "think", "stop")),
    "straight": ("<|channel|>final<|message|>yes<|return|>", "stop", Parsed("yes", None, "stop")),
    "call": (
        ANALYSIS + CALL,
        "stop",
        Parsed("", "think", "stop", {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]}),
    ),
    "call, recipient first": (
        " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        "stop",
        Parsed("", None, "stop", {"tool_calls": [{"name": "f", "arguments": {}}]}),
    ),
    "call with arguments that are no JSON": (
        "<|channel|>commentary to=functions.f<|message|>{oops<|call|>",
        "stop",
        Parsed("", None, "stop", {"tool_calls": [{"name": "f", "arguments": "{oops"}]}),
    ),
    "preamble": (
        f"{ANALYSIS}<|channel|>commentary<|message|>I will call f.<|end|><|start|>assistant{CALL}",
        "stop",
        Parsed(
            "",
            "think",
            "stop",
            {"commentary": "I will call f.", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        ),
    ),
    "cut in the answer": (f"{ANALYSIS}<|channel|>final<|message|>ye", "length", Parsed("ye", "think", "length")),
    "cut in the reasoning": ("<|channel|>analysis<|message|>thi", "length", Parsed("", "thi", "length")),
    "cut in a header": (f"{ANALYSIS}<|channel|>fin", "length", Parsed("", "think", "length")),
    "cut in the first header": ("<|channel|>ana", "length", Parsed("<|channel|>ana", None, "length")),
    "no header": ("just words", "length", Parsed("just words", None, "malformed")),
    "words after the answer": (
        "<|channel|>final<|message|>yes<|end|>more",
        "stop",
        Parsed("<|channel|>final<|message|>yes<|end|>more", None, "malformed"),
    ),
    "nothing": ("", "stop", Parsed("", None, "malformed")),
}


@pytest.mark.parametrize("state", COMPLETIONS)
def test_completion(state: str, made: Callable[..., HarmonyFormat]) -> None:
    text, finish_reason, expected = COMPLETIONS[state]
    token_ids = ENCODING.encode(text, allowed_special="all")
    assert made().parse(Completion("", token_ids, finish_reason), PROMPT) == expected


def test_bytes_that_are_no_text(made: Callable[..., HarmonyFormat]) -> None:
    """Cut within a character: half of an emoji's tokens."""
    whole = ENCODING.encode("<|channel|>final<|message|>ok 🦩", allowed_special="all")
    parsed = made().parse(Completion("", whole[:-1], "length"), PROMPT)
    assert parsed.predict.startswith("ok ")
    assert parsed.finish_reason == "length"
    json.dumps(parsed.predict).encode()


def test_tokens_outside_the_vocabulary(made: Callable[..., HarmonyFormat]) -> None:
    """The model's output layer is larger than harmony's vocabulary."""
    parsed = made().parse(Completion("", [201087, 5, 201000], "length"), PROMPT)
    assert parsed.finish_reason == "malformed"


def test_config_json_alone_tells_the_family(model: str) -> None:
    assert {path.name for path in Path(model).iterdir()} == {"config.json"}
