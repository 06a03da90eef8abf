"""Records as conversations: labels, system prompts, templates, and what is malformed."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.config import DatasetConfig, PromptConfig
from tasks.prompts.conversation import read_conversation
from tasks.records import Record, RecordError
from tests.prompts.conftest import conversation, user

ANSWER = {"role": "assistant", "content": "4"}


def test_bare_prompt() -> None:
    talk = conversation(prompt="Hi", id="a1", other=1)
    assert (talk.kind, talk.messages, talk.label, talk.id) == ("prompt", [user("Hi")], None, "a1")
    assert talk.fields["other"] == 1


def test_last_assistant_turn_is_the_label() -> None:
    talk = conversation(messages=[user("2+2?"), ANSWER])
    assert (talk.messages, talk.label) == ([user("2+2?")], "4")


def test_messages_go_before_a_prompt() -> None:
    assert conversation(messages=[user("a")], prompt="b").messages == [user("a")]
    assert conversation(messages=None, prompt="b").messages == [user("b")]


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"label": 1}, 1),
        ({"answer": "x"}, "x"),
        ({"label": 0, "answer": "x"}, 0),
        ({"label": None, "answer": "x"}, "x"),
        ({}, "4"),
    ],
)
def test_where_the_label_comes_from(fields: dict[str, Any], label: Any) -> None:
    assert conversation(messages=[user("2+2?"), ANSWER], **fields).label == label


def test_fields_by_other_names() -> None:
    names = {
        "messages_field": "turns",
        "prompt_field": "q",
        "label_field": "gold",
        "images_field": "pic",
        "id_field": "key",
    }
    fields = {"q": "Hi", "gold": [1], "pic": "a.png", "key": 7, "label": "no"}
    dataset = DatasetConfig.model_validate({"path": "x", **names})
    talk = read_conversation(Record(0, "", "x line 1", fields), dataset, PromptConfig())
    assert (talk.messages, talk.label, talk.images, talk.id) == ([user("Hi")], [1], ["a.png"], 7)


def test_system_prompt_replaces_the_records() -> None:
    own = {"role": "system", "content": "old"}
    talk = conversation(PromptConfig(system="new"), messages=[own, user("Hi")])
    assert talk.messages == [{"role": "system", "content": "new"}, user("Hi")]


def test_template_makes_the_last_user_turn() -> None:
    settings = PromptConfig(template="{{ prompt }} ({{ level }}){% if hint %} {{ hint }}{% endif %}")
    messages = [user("a"), ANSWER, user("b"), ANSWER]
    talk = conversation(settings, messages=messages, level=3, hint=None)
    assert (talk.messages, talk.label) == ([user("a"), ANSWER, user("b (3)")], "4")


def test_template_over_fields_alone() -> None:
    assert conversation(PromptConfig(template="{{ a }}+{{ b }}"), a=1, b=2).messages == [user("1+2")]


def test_a_prompt_that_is_missing_is_no_empty_one() -> None:
    """Else a wrong prompt_field would ask the template's own words of every record."""
    with pytest.raises(RecordError, match="'prompt' is undefined"):
        conversation(PromptConfig(template="Q: {{ prompt }}"), question="x")


def test_template_keeps_media_parts() -> None:
    image = {"type": "image", "image": "a.png"}
    messages = [user([image, {"type": "text", "text": "What?"}])]
    talk = conversation(PromptConfig(template="Q: {{ prompt }}"), messages=messages)
    assert talk.messages == [user([image, {"type": "text", "text": "Q: What?"}])]


@pytest.mark.parametrize(
    "template", ["{{ missing }}", "{{ 1 / 0 }}", "{{ ''.__class__.__mro__ }}", "{{ prompt.nope() }}"]
)
def test_template_that_fails(template: str) -> None:
    with pytest.raises(RecordError, match=r"line 1: prompt\.template") as caught:
        conversation(PromptConfig(template=template), prompt="x")
    assert caught.value.kind == "template_error"


MALFORMED: dict[str, dict[str, Any]] = {
    "has neither 'messages' nor 'prompt'": {"question": "x"},
    "'prompt' must be text, got int": {"prompt": 7},
    "'messages' must be a list, got str": {"messages": "Hi"},
    r"'messages\[1\]' must be an object, got str": {"messages": [user("a"), "b"]},
    r"'messages\[0\].role' must be one of": {"messages": [{"role": "human", "content": "x"}]},
    r"'messages\[0\].content' must be text or a list": {"messages": [user(7)]},
    r"'messages\[0\].content\[0\]' must be an object with a 'type'": {"messages": [user(["x"])]},
    r"'messages\[0\].content\[0\].text' must be text": {"messages": [user([{"type": "text"}])]},
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_record_names_the_field(message: str) -> None:
    with pytest.raises(RecordError, match=f"data.jsonl line 1: {message}") as caught:
        conversation(**MALFORMED[message])
    assert caught.value.kind == "malformed_record"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "  \n"},
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [ANSWER]},
        {"messages": [user([])]},
        {"messages": [user([{"type": "text", "text": " "}])]},
    ],
)
def test_nothing_asked(fields: dict[str, Any]) -> None:
    with pytest.raises(RecordError) as caught:
        conversation(**fields)
    assert caught.value.kind == "empty_prompt"


def test_call_without_content_is_a_turn() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert conversation(messages=[user("a"), call, {"role": "tool", "content": "1"}]).messages[1] == call


def test_media_fields_are_lists() -> None:
    talk = conversation(prompt="x", images="a.png", videos=[["1.png", "2.png"]])
    assert (talk.images, talk.videos) == (["a.png"], [["1.png", "2.png"]])


def test_an_empty_cell_of_a_table_is_no_value() -> None:
    made = conversation(prompt="x", messages=" ", label="", images="", videos="")
    assert (made.kind, made.label, made.images, made.videos) == ("prompt", None, [], [])
