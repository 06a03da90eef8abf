"""Text models: the model's own chat template, or the prompt as it is; `<think>…</think>` split off the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from tasks.config import PromptConfig
from tasks.prompts.base import Completion, Parsed, Prompt
from tasks.prompts.conversation import Conversation, Message, text_turns, tools_of
from tasks.records import Json, RecordError

OPEN, CLOSE = "<think>", "</think>"


class ChatFormat:
    """The chat template that comes with the model, applied to the conversation."""

    def __init__(self, model_path: str, config: PromptConfig, trust_remote_code: bool = False) -> None:
        self.takes_media = False
        self.engine_args: Json = {}
        self.sampling_args: Json = {}
        self._tokenizer = load_tokenizer(model_path, trust_remote_code)
        self._knows_developer = "developer" in str(self._tokenizer.chat_template)
        self._kwargs = dict(config.chat_template_kwargs)
        if config.enable_thinking is not None:
            self._kwargs["enable_thinking"] = config.enable_thinking

    def render(self, conversation: Conversation) -> Prompt:
        messages = [_with_parsed_arguments(self._in_role(message)) for message in text_turns(conversation)]
        tools = tools_of(conversation)
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
                **self._kwargs,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise RecordError("template_error", f"{conversation.where}: the chat template refuses: {error}") from error
        token_ids = encode(self._tokenizer, text, conversation.where, add_special_tokens=False)
        return Prompt(text=text, token_ids=token_ids, length=len(token_ids))

    def parse(self, completion: Completion, prompt: Prompt) -> Parsed:
        return parse_thinking(completion, prompt)

    def _in_role(self, message: Message) -> Message:
        """Templates drop turns of a role that they do not know, without a word."""
        unknown = message["role"] == "developer" and not self._knows_developer
        return message | {"role": "system"} if unknown else message


class RawFormat:
    """The prompt's text as it is, for base models and prompts that are already rendered."""

    def __init__(self, model_path: str, trust_remote_code: bool = False) -> None:
        self.takes_media = False
        self.engine_args: Json = {}
        self.sampling_args: Json = {}
        self._tokenizer = load_tokenizer(model_path, trust_remote_code)

    def render(self, conversation: Conversation) -> Prompt:
        text = raw_text(conversation)
        token_ids = encode(self._tokenizer, text, conversation.where, add_special_tokens=True)
        return Prompt(text=text, token_ids=token_ids, length=len(token_ids))

    def parse(self, completion: Completion, prompt: Prompt) -> Parsed:
        return parse_thinking(completion, prompt)


def raw_text(conversation: Conversation) -> str:
    """The text of a conversation of one turn, behind its system prompt if it has one."""
    turns = [m for m in conversation.messages if m["role"] != "system"]
    if conversation.kind == "messages" and len(turns) != 1:
        message = (
            f"{conversation.where}: prompt.format raw takes one turn, the record has {len(turns)}: "
            "use a model with a chat template, or prompt.template"
        )
        raise RecordError("malformed_record", message)
    return "".join(message["content"] for message in text_turns(conversation))


def parse_thinking(completion: Completion, prompt: Prompt) -> Parsed:
    """Split `<think>…</think>` into reasoning and predict.

    The tag may have been opened by the template at the prompt's end. Never closed, all of it is reasoning: the model
    was cut while it thought.
    """
    text = completion.text
    opened = prompt.text.rstrip().endswith(OPEN) and not completion.structured
    body = text.lstrip()
    if body.startswith(OPEN):
        opened, text = True, body.removeprefix(OPEN)
    if not opened and CLOSE not in text:
        return Parsed(completion.text, None, completion.finish_reason)
    reasoning, closed, predict = text.partition(CLOSE)
    if not closed:
        predict = ""
    return Parsed(predict.lstrip("\n") if closed else "", reasoning.strip("\n"), completion.finish_reason)


def load_tokenizer(model_path: str, trust_remote_code: bool) -> Any:
    """The model's tokenizer, from local files only."""
    from transformers import AutoTokenizer

    return warmed(AutoTokenizer.from_pretrained(model_path, local_files_only=True, trust_remote_code=trust_remote_code))


def warmed(tokenizer: Any) -> Any:
    """The tokenizer, fit for threads: its first call may reset truncation and padding that tokenizer.json asks for."""
    tokenizer.encode("")
    return tokenizer


def encode(tokenizer: Any, text: str, where: str, add_special_tokens: bool) -> list[int]:
    """The text's token ids. Raises RecordError("malformed_record") for text that is no valid Unicode."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    except (UnicodeError, TypeError) as error:
        message = f"{where}: the text is no valid Unicode (a lone surrogate such as \\ud83d?)"
        raise RecordError("malformed_record", message) from error


def has_chat_template(model_path: str) -> bool:
    """Whether the model's files hold a chat template."""
    folder = Path(model_path)
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    tokenizer_config = folder / "tokenizer_config.json"
    return tokenizer_config.exists() and '"chat_template"' in tokenizer_config.read_text(encoding="utf-8")


def _with_parsed_arguments(message: Message) -> Message:
    """Arguments of tool calls as objects: OpenAI's format has them as JSON text, which templates would quote again."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_parsed_call(call) for call in calls]}


def _parsed_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}
