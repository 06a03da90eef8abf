"""A conversation as an OpenAI-compatible server takes it: messages, with media as data URIs.

Images are read, checked and scaled here, so that a broken one is known by its kind before anything is sent, and a
server needs no access to the dataset's files.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import PromptConfig
from tasks.prompts.conversation import Conversation, Message, text_of, text_turns
from tasks.prompts.media import Content, MediaReader, describe
from tasks.prompts.placement import MAX_PIXELS, MediaItem, place_media
from tasks.records import Json, RecordError

if TYPE_CHECKING:
    from PIL import Image

_KEPT = ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", "reasoning", "reasoning_content")
_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


@dataclass(frozen=True, slots=True)
class Messages:
    """`text` is for people: the turns with `<image>` where one stands. `media_bytes` is the size of the data URIs,
    `frames` the length of the longest video that is a list of frames."""

    text: str
    turns: list[Json]
    media_bytes: int = 0
    has_video: bool = False
    frames: int = 0


class MessageWriter:
    """Made once an engine; called from several threads."""

    def __init__(self, config: PromptConfig, dataset_roots: list[str]) -> None:
        self._config = config
        self._reader = MediaReader(dataset_roots, config.media_roots, config.allow_remote_media)

    def write(self, conversation: Conversation) -> Messages:
        """Raises RecordError as the vision formats do."""
        if not self._holds_media(conversation):
            turns = text_turns(conversation)
            return Messages(_transcript(turns), [_turn(turn) for turn in turns])
        messages, items = place_media(conversation)
        written = [self._part(item, conversation.where) for item in items]
        parts = iter(written)
        turns = [_turn({**message, "content": _filled(message, parts)}) for message in messages]
        size = sum(len(part[part["type"]]["url"]) for part in written)
        frames = max((len(item.source) for item in items if isinstance(item.source, list)), default=0)
        return Messages(_transcript(messages), turns, size, any(item.kind == "video" for item in items), frames)

    def _holds_media(self, conversation: Conversation) -> bool:
        """`<image>` in a text is a placeholder where the record has media, or the model is said to see."""
        if self._config.format == "vision" or conversation.images or conversation.videos:
            return True
        contents = [message.get("content") for message in conversation.messages]
        return any(part["type"] != "text" for content in contents if isinstance(content, list) for part in content)

    def _part(self, item: MediaItem, where: str) -> Json:
        url = self._image(item, where) if item.kind == "image" else self._video(item, where)
        return {"type": f"{item.kind}_url", f"{item.kind}_url": {"url": url}}

    def _image(self, item: MediaItem, where: str) -> str:
        content = self._reader.find(item.source, "image", where)
        image = _upright(self._reader.image(content, describe(item.source), where))
        size = self._size(image, item.options, where)
        data = content if isinstance(content, bytes) else content.read_bytes()
        kind = _media_type(data)
        if size != image.size or kind is None:
            kind, data = "image/png", _png(image.resize(size) if size != image.size else image)
        return _uri(kind, data)

    def _size(self, image: Image.Image, options: Json, where: str) -> tuple[int, int]:
        """Within min_pixels and max_pixels, in the same shape; the server's own processor rounds it to its patches."""
        if "resized_width" in options and "resized_height" in options:
            return int(options["resized_width"]), int(options["resized_height"])
        pixels = image.width * image.height
        most = options.get("max_pixels", self._config.max_pixels) or math.inf
        least = options.get("min_pixels", self._config.min_pixels) or 0
        wanted = min(most, max(least, pixels))
        if wanted > MAX_PIXELS:
            raise RecordError("malformed_record", f"{where}: prompt.min_pixels is more than {MAX_PIXELS:,}")
        factor = math.sqrt(wanted / pixels)
        if factor == 1.0:
            return image.size
        round_ = math.floor if factor < 1 else math.ceil
        return max(1, round_(image.width * factor)), max(1, round_(image.height * factor))

    def _video(self, item: MediaItem, where: str) -> str:
        if item.options:
            message = f"{where}: {', '.join(item.options)} of one video cannot be told a server: use prompt.fps"
            raise RecordError("unsupported_media", message)
        if isinstance(item.source, list):
            frames = [self._reader.find(frame, "image", where) for frame in item.source]
            images = [self._reader.image(c, describe(s), where) for c, s in zip(frames, item.source, strict=True)]
            encoded = (base64.b64encode(_jpeg(_upright(image))).decode() for image in images)
            return "data:video/jpeg;base64," + ",".join(encoded)
        return _uri("video/mp4", _bytes(self._reader.find(item.source, "video", where)))


def _turn(message: Message) -> Json:
    """The message without what is no part of the protocol; arguments of tool calls as JSON text."""
    turn = {name: message[name] for name in _KEPT if message.get(name) is not None}
    turn.setdefault("content", "")
    if isinstance(turn.get("tool_calls"), list):
        turn["tool_calls"] = [_call(call, number) for number, call in enumerate(turn["tool_calls"])]
    return turn


def _call(call: Any, number: int) -> Any:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    named = {"name": function.get("name"), "arguments": text}
    return {"id": call.get("id") or f"call_{number}", "type": "function", "function": named}


def _filled(message: Message, parts: Iterator[Json]) -> str | list[Json]:
    content = message["content"]
    if isinstance(content, str):
        return content
    if all(part["type"] == "text" for part in content):
        return text_of(content)
    return [part if part["type"] == "text" else next(parts) for part in content]


def _transcript(messages: list[Message]) -> str:
    """One user turn as it is; else each turn with its role."""
    texts = [(message["role"], _readable(message.get("content") or "")) for message in messages]
    if len(texts) == 1 and texts[0][0] == "user":
        return texts[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in texts)


def _readable(content: str | list[Json]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in content)


def _media_type(data: bytes) -> str | None:
    """Of the image formats that every server reads; None for another."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says, which is lost when it is encoded anew."""
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # EXIF that cannot be read turns nothing
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    ready = image if image.mode in ("RGB", "RGBA", "L", "LA") else image.convert("RGB")
    ready.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _bytes(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
