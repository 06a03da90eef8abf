"""A record as a conversation: what is asked of the model, before any model's own format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import TemplateError

from tasks.config import DatasetConfig, PromptConfig
from tasks.prompts.template import render
from tasks.records import Json, Record, RecordError

ROLES = ("system", "developer", "user", "assistant", "tool")
TOOLS_FIELD = "tools"

Message = Json
"""{"role": one of ROLES, "content": str or list of parts}, plus whatever the record's turn holds (tool_calls, name)."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a record asks.

    `messages` never ends with the label: a last assistant turn has been taken off and is `label`. `kind` is
    "prompt" where the record had a bare prompt, which is then the one user turn. `images` and `videos` are the record's
    media fields as lists, not yet placed in the messages. `fields` is the whole record.
    """

    kind: Literal["messages", "prompt"]
    messages: list[Message]
    label: Any
    id: Any
    where: str
    fields: Json = field(default_factory=dict)
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)


def read_conversation(record: Record, dataset: DatasetConfig, prompt: PromptConfig) -> Conversation:
    """The record's conversation, with `prompt.system` and `prompt.template` applied.

    Raises RecordError("malformed_record") naming file, line and field for a wrong type, an unknown role or no prompt.
    """
    fields = record.fields
    kind: Literal["messages", "prompt"]
    label: Any = None
    if not _is_nothing(fields.get(dataset.messages_field)):
        kind = "messages"
        messages, label = _split_label(_messages(record, dataset.messages_field))
    elif fields.get(dataset.prompt_field) is not None:
        kind = "prompt"
        messages = [{"role": "user", "content": _prompt_text(record, dataset.prompt_field)}]
    elif prompt.template is not None:
        kind, messages = "prompt", []
    else:
        raise _malformed(record, f"has neither '{dataset.messages_field}' nor '{dataset.prompt_field}'")
    messages = _apply_template(record, messages, prompt.template)
    _require_content(record, messages)
    if prompt.system is not None:
        messages = [{"role": "system", "content": prompt.system}, *(m for m in messages if m["role"] != "system")]
    return Conversation(
        kind=kind,
        messages=messages,
        label=_label(fields, dataset.label_field, label),
        id=fields.get(dataset.id_field),
        where=record.where,
        fields=fields,
        images=_as_list(fields.get(dataset.images_field)),
        videos=_as_list(fields.get(dataset.videos_field)),
    )


def tools_of(conversation: Conversation) -> list[Any] | None:
    """The record's tools; many datasets have them as JSON text. Raises RecordError("malformed_record")."""
    tools = conversation.fields.get(TOOLS_FIELD)
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            message = f"{conversation.where}: '{TOOLS_FIELD}' must be a list, got text that is no JSON: {error}"
            raise RecordError("malformed_record", message) from error
    if isinstance(tools, list | None):
        return tools or None
    message = f"{conversation.where}: '{TOOLS_FIELD}' must be a list, got {type(tools).__name__}"
    raise RecordError("malformed_record", message)


def text_of(content: Any) -> str:
    """The text of a message's content: the string, or its text parts joined."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def text_turns(conversation: Conversation) -> list[Message]:
    """The messages with their content as text, "" where a turn has none; for models that take nothing else.

    Raises RecordError("unsupported_media") where the record holds anything else.
    """
    types = {part["type"] for m in conversation.messages for part in _parts(m)} - {"text"}
    types |= {name for name in ("images", "videos") if getattr(conversation, name)}
    if types:
        raise RecordError("unsupported_media", f"{conversation.where}: this model takes no {', '.join(sorted(types))}")
    return [{**m, "content": text_of(m.get("content") or "")} for m in conversation.messages]


def _messages(record: Record, name: str) -> list[Message]:
    messages = record.fields[name]
    if not isinstance(messages, list):
        raise _malformed(record, f"'{name}' must be a list, got {type(messages).__name__}")
    if not messages:
        raise RecordError("empty_prompt", f"{record.where}: '{name}' is empty")
    messages = [_with_tool_words(message) for message in messages]
    for number, message in enumerate(messages):
        _check_message(record, f"{name}[{number}]", message)
    return messages


def _with_tool_words(message: Any) -> Any:
    """A call of a function and its result, as OpenAI's format had them before there were tools, in today's words."""
    if not isinstance(message, dict):
        return message
    message = dict(message)
    call = message.pop("function_call", None)
    if call is not None and not message.get("tool_calls"):
        message["tool_calls"] = [{"type": "function", "function": call}]
    if message.get("role") == "function":
        message["role"] = "tool"
    return message


def _check_message(record: Record, name: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _malformed(record, f"'{name}' must be an object, got {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise _malformed(record, f"'{name}.role' must be one of {', '.join(ROLES)}, got {role!r}")
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return
    if isinstance(content, list):
        for part_number, part in enumerate(content):
            _check_part(record, f"{name}.content[{part_number}]", part)
    elif not isinstance(content, str):
        raise _malformed(record, f"'{name}.content' must be text or a list of parts, got {type(content).__name__}")


def _check_part(record: Record, name: str, part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise _malformed(record, f"'{name}' must be an object with a 'type'")
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise _malformed(record, f"'{name}.text' must be text, got {type(part.get('text')).__name__}")


def _split_label(messages: list[Message]) -> tuple[list[Message], Any]:
    if messages[-1]["role"] != "assistant":
        return messages, None
    content = messages[-1].get("content")
    return messages[:-1], text_of(content) if content is not None else None


def _prompt_text(record: Record, name: str) -> str:
    value = record.fields[name]
    if not isinstance(value, str):
        raise _malformed(record, f"'{name}' must be text, got {type(value).__name__}")
    return value


def _apply_template(record: Record, messages: list[Message], template: str | None) -> list[Message]:
    if template is None:
        return messages
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
    own = {"prompt": text_of(messages[last_user]["content"])} if last_user is not None else {}
    try:
        text = render(template, record.fields | own)
    except Exception as error:  # a template may raise anything
        words = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise RecordError("template_error", f"{record.where}: prompt.template: {words}") from error
    if last_user is None:
        return [*messages, {"role": "user", "content": text}]
    content = messages[last_user]["content"]
    media = [] if isinstance(content, str) else [part for part in content if part["type"] != "text"]
    new: Any = [*media, {"type": "text", "text": text}] if media else text
    return [*messages[:last_user], {**messages[last_user], "content": new}, *messages[last_user + 1 :]]


def _require_content(record: Record, messages: list[Message]) -> None:
    """A conversation that asks nothing would be paid for and worthless."""
    asked = [m for m in messages if m["role"] != "system"]
    if not asked:
        raise RecordError("empty_prompt", f"{record.where}: nothing is asked: no turn but the system's or the label's")
    if all(_is_blank(m.get("content")) for m in asked):
        raise RecordError("empty_prompt", f"{record.where}: the prompt is empty")


def _is_blank(content: Any) -> bool:
    if isinstance(content, list):
        return all(part["type"] == "text" and not part["text"].strip() for part in content)
    return isinstance(content, str) and not content.strip()


def _parts(message: Message) -> list[Json]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _label(fields: Json, name: str | None, from_messages: Any) -> Any:
    for candidate in ("label", "answer") if name is None else (name,):
        if not _is_nothing(fields.get(candidate)):
            return fields[candidate]
    return from_messages if name is None else None


def _is_nothing(value: Any) -> bool:
    """Null, or what a table has for it: an empty cell."""
    return value is None or (isinstance(value, str) and not value.strip())


def _as_list(value: Any) -> list[Any]:
    if _is_nothing(value):
        return []
    return value if isinstance(value, list) else [value]


def _malformed(record: Record, what: str) -> RecordError:
    return RecordError("malformed_record", f"{record.where}: {what}")
