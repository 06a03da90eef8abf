"""One OpenAI-compatible server over HTTP: what it serves, and requests that are tried again while that may help.

The key is read from the environment, sent in a header, and cut out of every message that quotes it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from tasks.config import EngineConfig
from tasks.engines.base import EngineDeadError
from tasks.engines.limiter import Limiter
from tasks.errors import RunError
from tasks.records import Json, RecordError

CONNECT_SECONDS = 10.0
MOST_WAIT_SECONDS = 30.0
"""Longest pause between two tries, unless the server asks for a longer one."""
BUSY_SECONDS = 300.0
"""How long a server may answer nothing but 429 and 503."""
GONE_SECONDS, ONLY_SERVER_SECONDS = 5.0, 240.0
"""How long a server may be unreachable: where others can do its work, and where there is no other."""
MOST_TRIES = 8
"""Of a request that fails while others are answered."""
MOST_FORBIDDEN = 16
"""Requests in a row that a server may forbid, and still count as one that answers."""

_BACKOFF = wait_random_exponential(multiplier=0.5, max=MOST_WAIT_SECONDS)
_TOKENS_METRIC = re.compile(rb"^\w+:generation_tokens_total(?:\{[^}]*\})? ([\d.e+]+)$", re.MULTILINE)


class Refused(Exception):
    """The server takes this request for wrong (4xx); another would do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class _Failed(Exception):
    """A try that failed and may do better later."""

    message: str
    wait: float = 0.0
    others_are_answered: bool = False


class _Busy(_Failed):
    """429 or 503: later."""


class _Broken(_Failed):
    """Another 5xx: this request's fault, or the server's."""


class _Unreachable(_Failed):
    """Nobody answers."""


class Server:
    """A server at a base URL (`http://host:8000/v1`). Made and used in one event loop."""

    def __init__(self, base_url: str, engine: EngineConfig, limiter: Limiter) -> None:
        self.url = base_url.rstrip("/")
        self._limiter = limiter
        self._key = api_key(engine)
        self._gone_seconds = GONE_SECONDS if len(engine.base_urls) > 1 else ONLY_SERVER_SECONDS
        self._answered_at = 0.0
        self._forbidden = 0
        self._metrics_url: str | None = self.url.removesuffix("/v1") + "/metrics"
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # No limit on reading: an answer may take an hour. A server that hangs is the watchdog's business.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
        )

    async def post(self, path: str, body: bytes, samples: int, count: Callable[[Json], int]) -> Json:
        """The server's answer to a request for so many samples; `count` tells the tokens that an answer holds.

        Raises Refused for a request that is wrong, RecordError for one that fails while others are answered, and
        EngineDeadError where the server is gone, broken, or wants another key.
        """
        tries = AsyncRetrying(
            retry=retry_if_exception_type(_Failed),
            wait=lambda state: max(_BACKOFF(state), _failure(state).wait),
            stop=self._hopeless(),
            reraise=True,
        )
        try:
            answer: Json = await tries(self._try, path, body, samples, count)
        except _Failed as error:
            if error.others_are_answered:
                raise RecordError("server_error", f"{error.message} (tried {MOST_TRIES} times)") from error
            raise EngineDeadError(f"{self.url}: {error.message}") from error
        return answer

    @property
    def has_metrics(self) -> bool:
        """False once the server has shown that it tells no tokens."""
        return self._metrics_url is not None

    async def generated_tokens(self) -> float | None:
        """Tokens that the server has made for anyone, from its Prometheus metrics; None where it has none."""
        if self._metrics_url is None:
            return None
        try:
            response = await self._client.get(self._metrics_url, timeout=CONNECT_SECONDS)
        except httpx.HTTPError:
            return None
        found = _TOKENS_METRIC.findall(response.content) if response.status_code == 200 else []
        if not found:
            self._metrics_url = None if response.status_code < 500 else self._metrics_url
            return None
        return float(sum(map(float, found)))

    async def _try(self, path: str, body: bytes, samples: int, count: Callable[[Json], int]) -> Json:
        async with self._limiter.room(samples):
            sent_at = time.monotonic()
            try:
                answer = self._read(await self._client.post(f"{self.url}{path}", content=body, headers=_JSON))
            except httpx.HTTPError as error:
                raise _Unreachable(f"{type(error).__name__}: {error}") from error
            except _Busy:
                self._limiter.refused(sent_at)
                raise
            self._answered_at, self._forbidden = time.monotonic(), 0
            self._limiter.finished(samples, count(answer))
        return answer

    def _read(self, response: httpx.Response) -> Json:
        status, told = response.status_code, str(response.status_code)
        if status < 400:
            answer = self._answer(response)
            if answer.get("choices") or not answer.get("error"):
                return answer
            status, told = _error_status(answer["error"]), f"{status} with an error"
        message = redacted(f"the server answers {told}: {error_message(response)}", self._key)
        wait = _retry_after(response)
        if status in (408, 409, 425, 429, 503) and "insufficient_quota" not in response.text:
            raise _Busy(message, wait)
        if status in (502, 504):
            raise _Unreachable(message, wait)
        if status >= 500:
            raise _Broken(message, wait)
        if status in (401, 402, 429) or (status in (403, 404) and self._forbids_all()):
            raise EngineDeadError(f"{self.url}{_hint(status)}: {message}")
        raise Refused(status, message)

    def _forbids_all(self) -> bool:
        """A gateway may forbid one request for what it says; a wrong key or model lets none through."""
        self._forbidden += 1
        return not self._answered_at or self._forbidden > MOST_FORBIDDEN

    def _answer(self, response: httpx.Response) -> Json:
        """A completion, or an error that came with a status of success. Raises _Broken for anything else."""
        try:
            answer = _decoded(response.content)
        except (ValueError, RecursionError) as error:
            raise self._broken("no JSON", response) from error
        if not isinstance(answer, dict) or not _well_formed(answer):
            raise self._broken("no completion", response)
        return answer

    def _broken(self, what: str, response: httpx.Response) -> _Broken:
        return _Broken(redacted(f"answered {what}: {response.text[:200]!r}", self._key))

    def _hopeless(self) -> Callable[[RetryCallState], bool]:
        """When to stop trying one request. What others were answered before it first failed proves nothing."""
        since = 0.0

        def stop(state: RetryCallState) -> bool:
            nonlocal since
            now, failure = time.monotonic(), _failure(state)
            since = since or now
            failure.others_are_answered = self._answered_at > since
            silent = now - max(since, self._answered_at)
            if isinstance(failure, _Busy):
                return silent > BUSY_SECONDS
            if failure.others_are_answered or isinstance(failure, _Broken):
                return state.attempt_number >= MOST_TRIES
            return silent > self._gone_seconds

        return stop


def api_key(engine: EngineConfig) -> str | None:
    """The key that `engine.api_key_env` names. Raises RunError where that variable is not set."""
    if engine.api_key_env is None:
        return None
    key = os.environ.get(engine.api_key_env, "").strip()
    if not key:
        raise RunError(f"engine.api_key_env: the environment variable {engine.api_key_env} is not set")
    return key


def error_message(response: httpx.Response) -> str:
    """What a server says of an error, in one line: OpenAI's `error.message`, FastAPI's `detail`, or the body."""
    try:
        body: Any = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        body = response.text
    if isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail") or body
    if isinstance(body, dict):
        body = body.get("message") or body
    text = " ".join((body if isinstance(body, str) else orjson.dumps(body).decode()).split())
    return text if len(text) <= 1000 else f"{text[:1000]}…"


def redacted(message: str, key: str | None) -> str:
    """The message without the key, should the server have quoted it."""
    return message.replace(key, "***") if key else message


_JSON = {"Content-Type": "application/json"}


def _decoded(content: bytes) -> Any:
    """JSON, and what servers take for it: behind a BOM, with NaN (read as null) or half a surrogate pair (as `?`).

    Rows are strict JSON, so none of these may reach them.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        lenient = json.loads(content.decode("utf-8-sig"), parse_constant=lambda _: None)
        return orjson.loads(json.dumps(lenient, ensure_ascii=False).encode(errors="replace"))


def _well_formed(answer: Json) -> bool:
    if "choices" not in answer:
        return bool(answer.get("error"))
    choices = answer["choices"] or []
    return isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices)


def _error_status(error: Any) -> int:
    """The HTTP status that an error in a body names as its code; 500 where it names none."""
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500


def _failure(state: RetryCallState) -> _Failed:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, _Failed)
    return error


def _hint(status: int) -> str:
    return " (see engine.api_key_env)" if status in (401, 403) else ""


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, at most two minutes."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), 120.0)
