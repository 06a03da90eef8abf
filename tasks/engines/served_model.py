"""The model behind OpenAI-compatible servers: its name, and what they tell of it. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import orjson

from tasks.config import EngineConfig
from tasks.engines.openai_server import api_key, error_message, redacted
from tasks.errors import RunError
from tasks.records import Json, ModelManifest

AUTO = "auto"
ANSWER_SECONDS = 30.0
TRIES = 3
_IDENTITY = ("root", "parent", "max_model_len")
"""What of a model's card says which model it is. vLLM tells these; other servers tell no more than the name."""


def served_model(source: str, engine: EngineConfig) -> ModelManifest:
    """The manifest of the model named `source` on the servers of `engine.base_urls`; `auto`: the one they serve.

    A server that does not answer is passed over while another does. Raises RunError where none does, where the model
    is not served, and where two servers tell different things of it.
    """
    with ThreadPoolExecutor(len(engine.base_urls)) as threads:
        lists = list(threads.map(lambda url: _models(url, engine), engine.base_urls))
    cards = {
        url: _card(models, source, url)
        for url, models in zip(engine.base_urls, lists, strict=True)
        if not isinstance(models, str)
    }
    if not cards:
        raise RunError(f"engine.base_urls: no server answers: {'; '.join(str(told) for told in lists)}")
    (first_url, first), *others = cards.items()
    for url, card in others:
        if _told(card) != _told(first):
            raise RunError(
                f"engine.base_urls serve different models: {first_url}: {_told(first)}; {url}: {_told(card)}"
            )
    digest = hashlib.sha256(orjson.dumps(_told(first), option=orjson.OPT_SORT_KEYS)).hexdigest()
    return ModelManifest(source=first["id"], path="", identity=f"served:{digest}")


def list_models(url: str, engine: EngineConfig) -> list[Json]:
    """The cards of /v1/models. Raises httpx.HTTPError where the server is not there, RunError where it refuses."""
    key = api_key(engine)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = httpx.get(f"{url.rstrip('/')}/models", headers=headers, timeout=ANSWER_SECONDS)
    if response.status_code in (401, 403, 404):
        hint = "engine.base_urls end in /v1" if response.status_code == 404 else "see engine.api_key_env"
        message = redacted(error_message(response), key)
        raise RunError(f"engine.base_urls: {url} answers {response.status_code} ({hint}): {message}")
    response.raise_for_status()
    cards: list[Json] = orjson.loads(response.content)["data"]
    return cards


def _models(url: str, engine: EngineConfig) -> list[Json] | str:
    """The server's models, or why it does not answer."""
    for left in reversed(range(TRIES)):
        try:
            return list_models(url, engine)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if not left:
                return f"{url}: {type(error).__name__}: {error}"
            time.sleep(1.0)
    raise AssertionError("unreachable")


def _card(models: list[Json], source: str, url: str) -> Json:
    names = [str(card["id"]) for card in models]
    if source == AUTO:
        if len([card for card in models if not card.get("parent")]) != 1:
            raise RunError(f"model.source: {url} serves {', '.join(names) or 'no model'}: name one of them")
        return next(card for card in models if not card.get("parent"))
    for card in models:
        if card["id"] == source:
            return card
    raise RunError(f"model.source: {url} does not serve {source}, but {', '.join(names) or 'no model'}")


def _told(card: Json) -> Json:
    return {"id": card["id"], **{name: card[name] for name in _IDENTITY if card.get(name) is not None}}
