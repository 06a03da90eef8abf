"""Formats of the model families, made once, and media of every sort."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tasks.config import DatasetConfig, PromptConfig
from tasks.prompts.conversation import Conversation, read_conversation
from tasks.records import Record

# Real photographs, as files: scikit-image itself need not work.
_skimage = importlib.util.find_spec("skimage")
assert _skimage is not None, "install scikit-image"
assert _skimage.origin is not None
PHOTOS = Path(_skimage.origin).parent / "data"
ASTRONAUT, COFFEE, ROCKET = (str(PHOTOS / name) for name in ("astronaut.png", "coffee.png", "rocket.jpg"))


def conversation(settings: PromptConfig | None = None, /, **fields: Any) -> Conversation:
    """The conversation of a record with these fields."""
    record = Record(original_index=0, digest="", where="data.jsonl line 1", fields=fields)
    return read_conversation(record, DatasetConfig(path="data.jsonl"), settings or PromptConfig())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}
