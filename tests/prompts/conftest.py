"""Formats of the model families, made once, and media of every sort."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video: 3 s, 30 frames of 160 x 120, a bar that moves."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(30):
            pixels = np.full((120, 160, 3), 40, np.uint8)
            pixels[:, number * 5 : number * 5 + 10] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path
