"""gpt-oss: conversations in the harmony format, rendered to and parsed from token ids by openai_harmony.

The engine runs without a tokenizer: harmony's own vocabulary, which is part of the package, is the only one involved.
The system message names today's date only where the record does (`conversation_start_date`), so that the same record
asks the same on another day.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tasks.config import PromptConfig
from tasks.prompts.base import Completion, Parsed, Prompt
from tasks.prompts.conversation import TOOLS_FIELD, Conversation, Message, text_turns, tools_of
from tasks.records import Json, RecordError

if TYPE_CHECKING:
    import openai_harmony as harmony

DATE_FIELD = "conversation_start_date"
INSTRUCTIONS = ("system", "developer")
FUNCTIONS = "functions."
HEADER_STARTS, MESSAGE = ("<|channel|>", " to="), "<|message|>"


class HarmonyFormat:
    """System message, developer message (the record's instructions and tools), then the turns with their channels.

    A completion's analysis becomes `reasoning`, its final channel `predict`; `commentary` and `tool_calls`
    ([{"name", "arguments"}], arguments parsed where they are JSON) are extra columns of the rows that have them.
    """

    def __init__(self, model_path: str, config: PromptConfig) -> None:  # noqa: ARG002
        import openai_harmony as harmony

        self._encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
        self._effort = harmony.ReasoningEffort[(config.reasoning_effort or "medium").upper()]
        self.takes_media = False
        self.engine_args: Json = {"skip_tokenizer_init": True}
        self.sampling_args: Json = {
            "detokenize": False,
            "stop_token_ids": sorted(self._encoding.stop_tokens_for_assistant_actions()),
        }

    def render(self, conversation: Conversation) -> Prompt:
        import openai_harmony as harmony

        messages = self._messages(conversation)
        try:
            token_ids = self._encoding.render_conversation_for_completion(
                harmony.Conversation.from_messages(messages), harmony.Role.ASSISTANT
            )
        except (harmony.HarmonyError, ValueError) as error:
            message = f"{conversation.where}: harmony cannot render the conversation: {error}"
            raise RecordError("template_error", message) from error
        return Prompt(text=self._encoding.decode(token_ids), token_ids=token_ids, length=len(token_ids))

    def parse(self, completion: Completion, prompt: Prompt) -> Parsed:  # noqa: ARG002
        import openai_harmony as harmony

        parser = harmony.StreamableParser(self._encoding, role=harmony.Role.ASSISTANT)
        cut = completion.finish_reason == "length"
        try:
            for token in completion.token_ids:
                parser.process(token)
            # Cut inside a header, the half header is no error and says nothing.
            if not (cut and parser.state is harmony.StreamState.HEADER and parser.messages):
                parser.process_eos()
            return _fields(parser.messages, completion.finish_reason)
        except (harmony.HarmonyError, ValueError):
            text = self._encoding.decode(completion.token_ids)
            in_first_header = cut and text.startswith(HEADER_STARTS) and MESSAGE not in text
            return Parsed(text, None, "length" if in_first_header else "malformed")

    def _messages(self, conversation: Conversation) -> list[harmony.Message]:
        import openai_harmony as harmony

        turns = text_turns(conversation)
        first = next((i for i, turn in enumerate(turns) if turn["role"] not in INSTRUCTIONS), len(turns))
        instructions = "\n\n".join(turn["content"] for turn in turns[:first])
        messages = [harmony.Message.from_role_and_content(harmony.Role.SYSTEM, self._system(conversation))]
        tools = _tools(conversation)
        if instructions or tools:
            messages.append(_developer(instructions, tools))
        return messages + _drop_old_analysis(_turns(turns[first:], conversation.where))

    def _system(self, conversation: Conversation) -> harmony.SystemContent:
        import openai_harmony as harmony

        content = harmony.SystemContent.new().with_reasoning_effort(self._effort)
        date = conversation.fields.get(DATE_FIELD)
        if date is None:
            return content
        if not isinstance(date, str):
            raise _malformed(conversation.where, f"'{DATE_FIELD}' must be text, got {type(date).__name__}")
        return content.with_conversation_start_date(date)


def _developer(instructions: str, tools: list[harmony.ToolDescription]) -> harmony.Message:
    import openai_harmony as harmony

    content = harmony.DeveloperContent.new()
    if instructions:
        content = content.with_instructions(instructions)
    if tools:
        content = content.with_function_tools(tools)
    return harmony.Message.from_role_and_content(harmony.Role.DEVELOPER, content)


def _tools(conversation: Conversation) -> list[harmony.ToolDescription]:
    """The record's tools, in OpenAI's function format: {"type": "function", "function": {…}} or the inner object."""
    tools = tools_of(conversation) or []
    return [_tool(tool, f"{TOOLS_FIELD}[{number}]", conversation.where) for number, tool in enumerate(tools)]


def _tool(tool: Any, name: str, where: str) -> harmony.ToolDescription:
    import openai_harmony as harmony

    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _malformed(where, f"'{name}' must be a function with a 'name'")
    description, parameters = function.get("description") or "", function.get("parameters")
    if not isinstance(description, str):
        raise _malformed(where, f"'{name}.description' must be text, got {type(description).__name__}")
    if not isinstance(parameters, dict | None):
        raise _malformed(where, f"'{name}.parameters' must be a JSON schema, got {type(parameters).__name__}")
    return harmony.ToolDescription.new(function["name"], description, parameters)


def _turns(turns: list[Message], where: str) -> list[harmony.Message]:
    names: dict[Any, str] = {}  # of functions, by tool_call_id; None: the latest call
    messages: list[harmony.Message] = []
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            messages += _assistant(turn, names, where)
        elif turn["role"] == "tool":
            messages.append(_tool_result(turn, names, f"turn {number}", where))
        else:
            messages.append(_plain(turn))
    return messages


def _plain(turn: Message) -> harmony.Message:
    import openai_harmony as harmony

    if turn["role"] in INSTRUCTIONS:
        return _developer(turn["content"], [])
    return harmony.Message.from_role_and_content(harmony.Role(turn["role"]), turn["content"])


def _assistant(turn: Message, names: dict[Any, str], where: str) -> list[harmony.Message]:
    calls = turn.get("tool_calls") or []
    reasoning = next((turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)), None)
    messages = [_said(reasoning, "analysis")] if isinstance(reasoning, str) else []
    if turn["content"]:
        # What is said beside a call is a preamble to it, not the answer.
        messages.append(_said(turn["content"], "commentary" if calls else "final"))
    if not isinstance(calls, list):
        raise _malformed(where, f"'tool_calls' must be a list, got {type(calls).__name__}")
    return messages + [_call(call, names, where) for call in calls]


def _said(text: str, channel: str) -> harmony.Message:
    import openai_harmony as harmony

    return harmony.Message.from_role_and_content(harmony.Role.ASSISTANT, text).with_channel(channel)


def _call(call: Any, names: dict[Any, str], where: str) -> harmony.Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _malformed(where, "each of 'tool_calls' must hold a function with a 'name'")
    arguments = function.get("arguments", "")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    names[call.get("id")] = names[None] = function["name"]
    message = _said(text, "commentary").with_recipient(FUNCTIONS + function["name"])
    return message.with_content_type("<|constrain|>json")


def _tool_result(turn: Message, names: dict[Any, str], which: str, where: str) -> harmony.Message:
    import openai_harmony as harmony

    name = turn.get("name") or names.get(turn.get("tool_call_id"))
    if not isinstance(name, str):
        raise _malformed(where, f"{which}: a tool turn needs a 'name', or the 'tool_call_id' of a call before it")
    author = harmony.Author.new(harmony.Role.TOOL, FUNCTIONS + name.removeprefix(FUNCTIONS))
    message = harmony.Message.from_author_and_content(author, turn["content"])
    return message.with_channel("commentary").with_recipient("assistant")


def _drop_old_analysis(messages: list[harmony.Message]) -> list[harmony.Message]:
    """Without the reasoning behind answers that were given: the model was trained on histories without it.

    The library does this only where the very last message is an answer.
    """
    last = max((i for i, message in enumerate(messages) if message.channel == "final"), default=-1)
    return [message for i, message in enumerate(messages) if i > last or message.channel != "analysis"]


def _fields(messages: list[harmony.Message], finish_reason: str) -> Parsed:
    said: dict[str, list[str]] = {"analysis": [], "commentary": [], "final": []}
    calls: list[Json] = []
    for message in messages:
        text = "".join(getattr(part, "text", "") for part in message.content)
        if message.recipient not in (None, "assistant", "all"):
            calls.append({"name": str(message.recipient).removeprefix(FUNCTIONS), "arguments": _arguments(text)})
        else:
            said.get(message.channel or "final", said["commentary"]).append(text)
    extra: Json = {"commentary": "\n".join(said["commentary"])} if said["commentary"] else {}
    if calls:
        extra["tool_calls"] = calls
    reasoning = "\n".join(said["analysis"]) if said["analysis"] else None
    return Parsed("".join(said["final"]), reasoning, finish_reason, extra)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _malformed(where: str, what: str) -> RecordError:
    return RecordError("malformed_record", f"{where}: {what}")
