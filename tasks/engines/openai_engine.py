"""An engine that is a server: `engine.kind: openai`. Each of `engine.base_urls` is one engine of the pool.

The server renders, generates and parses; what is ours is to ask it for as many samples at once as it can make, to try
again, and to tell a bad record from a dead server. Fields that only vLLM knows are sent only where they are set.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from tasks.config import GenerateConfig, StructuredConfig
from tasks.engines.base import Ask, EngineDeadError, EngineSpec, EngineStats, Generated, Prepared
from tasks.engines.limiter import Limiter
from tasks.engines.openai_messages import MessageWriter
from tasks.engines.openai_server import Refused, Server
from tasks.engines.served_model import list_models
from tasks.engines.vllm_args import SAMPLING_SAME_NAME
from tasks.prompts.base import Completion, Parsed, Prompt
from tasks.prompts.chat import parse_thinking, raw_text
from tasks.prompts.conversation import Conversation, tools_of
from tasks.records import Json, RecordError

MOST_IN_FLIGHT = 512
METRICS_SECONDS = 5.0
MOST_COUNT = 2**53
"""A larger count of tokens is nonsense, and no JSON number that all readers take."""
FRAMES_TAKEN = 32
"""Frames of a list that vLLM takes unasked; it would drop the others."""

# vLLM, OpenAI, SGLang, llama.cpp, TGI: each says it in words of its own.
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|max_model_len|maximum model length"
    r"|max(imum)?.{0,20}(input|prompt).{0,20}(length|tokens)|(prompt|input).{0,40}(too long|longer than)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Payload:
    where: str
    request: Json
    """The request's fields that are the record's own; the large ones are JSON already."""


class OpenAIEngine:
    """One server, and the model on it."""

    def __init__(self, spec: EngineSpec, card: Json) -> None:
        config = spec.config
        self.max_num_seqs: int = spec.overrides.get("max_num_seqs") or config.engine.max_num_seqs or MOST_IN_FLIGHT
        self._limiter = Limiter(self.max_num_seqs, config.sampling.n)
        self._server = Server(config.engine.base_urls[spec.number], config.engine, self._limiter)
        self._is_vllm = card.get("owned_by") == "vllm"
        self._raw = config.prompt.format == "raw"
        self._path = "/completions" if self._raw else "/chat/completions"
        self._writer = MessageWriter(config.prompt, list(spec.dataset_roots))
        self._fps = config.prompt.fps
        self._extra = config.engine.extra
        self._shared = _shared_fields(config, card["id"])
        self._tokens = 0
        self._server_tokens: float | None = None
        self._watching: asyncio.Task[None] | None = None
        self.facts: Json = {
            "server": self._server.url,
            "served_model": card["id"],
            "max_model_len": card.get("max_model_len"),
            "max_num_seqs": self.max_num_seqs,
        }

    @classmethod
    async def start(cls, spec: EngineSpec) -> OpenAIEngine:
        """Find the model on the server. Raises EngineDeadError where it does not answer, RunError where it refuses."""
        url = spec.config.engine.base_urls[spec.number]
        try:
            cards = await asyncio.to_thread(list_models, url, spec.config.engine)
            card = next((card for card in cards if card["id"] == spec.served_model), None)
        except httpx.HTTPError as error:
            raise EngineDeadError(f"{url} does not answer: {type(error).__name__}: {error}") from None
        except (ValueError, KeyError, TypeError) as error:  # a gateway's page while the server starts
            raise EngineDeadError(f"{url} does not answer with a list of models: {error!r}") from None
        if card is None:
            raise EngineDeadError(f"{url} does not serve {spec.served_model}")
        engine = cls(spec, card)
        engine._watching = asyncio.create_task(engine._watch())
        return engine

    def prepare(self, conversation: Conversation) -> Prepared:
        if self._raw:
            text = raw_text(conversation)
            return Prepared(text=text, payload=_Payload(conversation.where, {"prompt": text}))
        messages = self._writer.write(conversation)
        request: Json = {"messages": _as_json(messages.turns, conversation.where)}
        if tools := tools_of(conversation):
            request["tools"] = [_tool(tool) for tool in tools]
        if self._is_vllm and (messages.frames > FRAMES_TAKEN or (self._fps and messages.has_video)):
            # vLLM wants to be started with --trust-request-mm-kwargs for it, and says so.
            request["media_io_kwargs"] = {"video": {"num_frames": -1, "fps": self._fps or 2.0}}
        payload = _Payload(conversation.where, request)
        return Prepared(text=messages.text, payload=payload, media_bytes=messages.media_bytes)

    async def generate(self, request_id: str, prepared: Prepared, ask: Ask) -> list[Generated]:  # noqa: ARG002
        try:
            made = await self._ask(prepared.payload, ask)
            if missing := range(len(made), ask.n):
                # A server that gives one sample a request, whatever n says.
                asks = [Ask(1, None if ask.seed is None else ask.seed + s, ask.max_tokens) for s in missing]
                more = await asyncio.gather(*(self._ask(prepared.payload, one) for one in asks))
                made += [sample for group in more for sample in group]
        except RecordError as error:
            raise RecordError(error.kind, f"{prepared.payload.where}: {error.message}") from error
        return made[: ask.n]

    def stats(self) -> EngineStats:
        known = self._server_tokens is not None
        detail: Json = {"server_tokens": self._server_tokens} if known else {"answers_only": True}
        return EngineStats(self._tokens, self._limiter.in_flight, self._limiter.waiting, detail=detail)

    async def close(self) -> None:
        """Nothing to end: the server drops what it is asked for when the connections close."""

    async def _watch(self) -> None:
        """The server's own count of tokens: a sign of life between two answers."""
        while self._server.has_metrics:
            if (tokens := await self._server.generated_tokens()) is not None:
                self._server_tokens = tokens
            await asyncio.sleep(METRICS_SECONDS)

    async def _ask(self, payload: _Payload, ask: Ask) -> list[Generated]:
        body = self._body(payload, ask)
        try:
            answer = await self._post(body, ask.n)
        except Refused as error:
            if not _TOO_LONG.search(error.message):
                kind = "request_too_large" if error.status == 413 else "engine_refused"
                raise RecordError(kind, error.message) from error
            answer = await self._ask_for_what_fits(body, ask.n, error)
        return self._samples(answer)

    async def _ask_for_what_fits(self, body: Json, n: int, error: Refused) -> Json:
        """Servers count max_tokens in; without it the answer gets what the context leaves, which is less."""
        short = {name: value for name, value in body.items() if name not in ("max_tokens", "max_completion_tokens")}
        if len(short) < len(body):
            try:
                return await self._post(short, n)
            except Refused as again:
                error = again
        raise RecordError("prompt_too_long", error.message) from error

    async def _post(self, body: Json, n: int) -> Json:
        return await self._server.post(self._path, orjson.dumps(body), n, _completion_tokens)

    def _body(self, payload: _Payload, ask: Ask) -> Json:
        body = {**self._shared, **payload.request}
        if ask.n > 1:
            body["n"] = ask.n
            if self._is_vllm:
                body["return_token_ids"] = True  # the usage counts all samples together
        if ask.seed is not None:
            body["seed"] = ask.seed
        if ask.max_tokens is not None:
            body["max_tokens"] = ask.max_tokens
        body |= self._extra
        return {name: value for name, value in body.items() if value is not None}

    def _samples(self, answer: Json) -> list[Generated]:
        choices = sorted(answer.get("choices") or [], key=lambda choice: _count(choice.get("index")))
        if not choices:
            raise RecordError("engine_refused", "the server's answer holds no sample")
        self._tokens += _completion_tokens(answer)
        usage = _object(answer.get("usage"))
        parsed = [_parsed(choice) for choice in choices]
        prompt_tokens = _count(usage.get("prompt_tokens"))
        cached = _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens"))
        counts = _token_counts(choices, parsed, _completion_tokens(answer))
        return [Generated(sample, prompt_tokens, count, cached) for sample, count in zip(parsed, counts, strict=True)]


def _shared_fields(config: GenerateConfig, model: str) -> Json:
    """The fields that all requests have. Unset ones are left to the server, which knows the model's own."""
    sampling, prompt = config.sampling, config.prompt
    body: Json = {"model": model}
    body |= {name: value for name in SAMPLING_SAME_NAME if (value := getattr(sampling, name)) is not None}
    for name in ("stop", "stop_token_ids", "ignore_eos"):
        if getattr(sampling, name):
            body[name] = getattr(sampling, name)
    if sampling.stop and sampling.include_stop_str_in_output:
        body["include_stop_str_in_output"] = True
    if sampling.structured is not None:
        body |= _structured(sampling.structured)
    if prompt.format == "raw":
        return body
    if prompt.reasoning_effort is not None:
        body["reasoning_effort"] = prompt.reasoning_effort
    template = dict(prompt.chat_template_kwargs)
    if prompt.enable_thinking is not None:
        template["enable_thinking"] = prompt.enable_thinking
    return body | ({"chat_template_kwargs": template} if template else {})


def _structured(config: StructuredConfig) -> Json:
    if config.json_schema is None:
        named = {"regex": config.regex, "choice": config.choice}
        return {"structured_outputs": {name: value for name, value in named.items() if value is not None}}
    schema = {"name": "answer", "schema": config.json_schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _parsed(choice: Json) -> Parsed:
    """A sample's fields: of a chat, or of a plain completion."""
    message, finish_reason = _object(choice.get("message")), _text(choice.get("finish_reason")) or "stop"
    text = _text(message.get("content")) or _text(choice.get("text"))
    extra: Json = {}
    if calls := _calls(message):
        extra["tool_calls"] = calls
    if refusal := message.get("refusal"):
        extra["refusal"] = refusal
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning is not None:
        return Parsed(text, _text(reasoning), finish_reason, extra)
    split = parse_thinking(Completion(text, [], finish_reason), Prompt("", [], 0))
    return Parsed(split.predict, split.reasoning, finish_reason, extra)


def _tool(tool: Any) -> Any:
    return tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool}


def _text(content: Any) -> str:
    """A message's text: a string, or a list of parts that hold one each; JSON where it is anything else."""
    if isinstance(content, list):
        return "".join(_text(_object(part).get("text")) for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    return orjson.dumps(content).decode()


def _calls(message: Json) -> list[Json]:
    """The calls that a message makes; older servers have one `function_call`."""
    listed = message.get("tool_calls")
    if isinstance(listed, list) and listed:
        return [_called(_object(call.get("function"))) for call in listed if isinstance(call, dict)]
    old = message.get("function_call")
    return [_called(old)] if isinstance(old, dict) else []


def _called(function: Json) -> Json:
    arguments: Any = function.get("arguments")
    try:
        parsed = orjson.loads(arguments)
    except (orjson.JSONDecodeError, TypeError):
        return {"name": function.get("name"), "arguments": arguments}
    return {"name": function.get("name"), "arguments": parsed}


def _completion_tokens(answer: Json) -> int:
    return _count(_object(answer.get("usage")).get("completion_tokens"))


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    """A number that a server tells, as a whole one: some tell 7.5 or "7". 0 for what is no count."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0
    return int(number) if 0 <= number < MOST_COUNT else 0


def _token_counts(choices: list[Json], parsed: list[Parsed], total: int) -> list[int]:
    """Each sample's tokens: counted where the server lists them; else the total, shared out by length of text."""
    if len(choices) == 1:
        return [total]
    if all(isinstance(choice.get("token_ids"), list) for choice in choices):
        return [len(choice["token_ids"]) for choice in choices]
    lengths = [len(sample.predict) + len(sample.reasoning or "") + 1 for sample in parsed]
    ends = [total * sum(lengths[: i + 1]) // sum(lengths) for i in range(len(lengths))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _as_json(turns: list[Json], where: str) -> orjson.Fragment:
    """Serialised once, in the preparing thread: images are large."""
    try:
        return orjson.Fragment(orjson.dumps(turns))
    except TypeError as error:
        message = f"{where}: the text is no valid Unicode (a lone surrogate such as \\ud83d?)"
        raise RecordError("malformed_record", message) from error
