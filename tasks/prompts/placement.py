"""Where a record's images and videos stand in its conversation.

Three ways to say it, all of which keep the place in the text: typed content parts that bring their own source
(`{"type": "image", "image": …}`, OpenAI's `image_url`), typed parts without one, and `<image>` or `<video>` in the
text; the latter two take the record's `images` and `videos` in order. With none of these, the media come first in the
first user turn.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from tasks.prompts.conversation import Conversation, Message
from tasks.records import Json, RecordError

Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")

SOURCE_KEYS = ("url", "path")
IMAGE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
VIDEO_OPTIONS = (
    *IMAGE_OPTIONS,
    *("fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"),
    *("total_pixels", "sample_fps", "raw_fps"),
)

_SCALED_UP_TO = ("min_pixels", "resized_height", "resized_width")
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
"""Pillow's own line for a decompression bomb: 89 megapixels, 268 MB decoded."""

_PLACEHOLDER = re.compile("<(image|video)>")


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One image or video to be read: `source` as the record has it, `options` by qwen_vl_utils' names."""

    kind: Kind
    source: Any
    options: Json = field(default_factory=dict)


def place_media(conversation: Conversation) -> tuple[list[Message], list[MediaItem]]:
    """The messages with a bare `{"type": "image"}` part at each medium's place, and the media in that order.

    Raises RecordError: media_count_mismatch, unsupported_media, malformed_record.
    """
    where = conversation.where
    split = [_split(message, _placeholders(conversation)) for message in conversation.messages]
    given: dict[Kind, list[Any]] = {"image": list(conversation.images), "video": list(conversation.videos)}
    slots = Counter(part["type"] for message in split for part in _parts(message) if _is_slot(part))
    for kind in KINDS:
        if given[kind] and not slots[kind]:
            split = _with_slots_first(split, kind, len(given[kind]), where)
        elif len(given[kind]) != slots[kind]:
            raise RecordError("media_count_mismatch", _mismatch(where, kind, slots[kind], len(given[kind])))
    items = [item for message in split for item in _items(message, given, where)]
    return [_bare(message) for message in split], items


def _placeholders(conversation: Conversation) -> set[str]:
    """The kinds whose `<kind>` in a text is a placeholder: it is mere text where all media bring their own source."""
    owned = {_kind(part) for message in conversation.messages for part in _parts(message) if not _is_slot(part)}
    given = {"image": conversation.images, "video": conversation.videos}
    return {kind for kind in KINDS if given[kind] or kind not in owned}


def _split(message: Message, placeholders: set[str]) -> Message:
    content = message.get("content")
    if content is None or (isinstance(content, str) and not _PLACEHOLDER.search(content)):
        return message
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": [piece for part in parts for piece in _split_text(part, placeholders)]}


def _split_text(part: Json, placeholders: set[str]) -> Iterator[Json]:
    if part["type"] != "text":
        yield part
        return
    text = part["text"]
    last = 0
    for match in _PLACEHOLDER.finditer(text):
        if match[1] in placeholders:
            if match.start() > last:
                yield {"type": "text", "text": text[last : match.start()]}
            yield {"type": match[1]}
            last = match.end()
    if last < len(text) or not text:
        yield {"type": "text", "text": text[last:]}


def _with_slots_first(messages: list[Message], kind: Kind, count: int, where: str) -> list[Message]:
    index = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if index is None:
        raise RecordError(
            "media_count_mismatch", _mismatch(where, kind, 0, count) + ", and no user turn to put them in"
        )
    content = messages[index].get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    first = sum(1 for _ in takewhile(_is_slot, parts))  # behind images that were put there before
    new = [*parts[:first], *({"type": kind} for _ in range(count)), *parts[first:]]
    return [*messages[:index], {**messages[index], "content": new}, *messages[index + 1 :]]


def _items(message: Message, given: dict[Kind, list[Any]], where: str) -> Iterator[MediaItem]:
    for part in _parts(message):
        kind = _kind(part)
        if kind is None:
            if part["type"] != "text":
                raise RecordError("unsupported_media", f"{where}: this model takes no {part['type']}")
            continue
        source = _source(part, kind)
        yield _item(kind, given[kind].pop(0) if source is None else source, _options(part, kind, where), where)


def _item(kind: Kind, source: Any, options: Json, where: str) -> MediaItem:
    """An entry of `videos` or `images` may itself be an object with options, as a typed part is."""
    if isinstance(source, dict) and (own := _source(source, kind)) is not None:
        return MediaItem(kind, own, options | _options(source, kind, where))
    return MediaItem(kind, source, options)


def _source(part: Json, kind: Kind) -> Any:
    """The part's own source, or None. Hugging Face's {"bytes", "path"} is a source as a whole."""
    if part.get("bytes") is not None:
        return {"bytes": part["bytes"], "path": part.get("path")}
    for key in (kind, f"{kind}_url", *SOURCE_KEYS):
        value = part.get(key)
        if value is not None:
            return value["url"] if isinstance(value, dict) and isinstance(value.get("url"), str) else value
    return None


def _options(part: Json, kind: Kind, where: str) -> Json:
    names = IMAGE_OPTIONS if kind == "image" else VIDEO_OPTIONS
    options = {name: part[name] for name in names if part.get(name) is not None}
    for name, value in options.items():
        least, most = (1, MAX_PIXELS) if name in _SCALED_UP_TO else (0, math.inf)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            limits = f" from {least} to {most:,}" if most < math.inf else ""
            raise RecordError(
                "malformed_record", f"{where}: '{name}' of the {kind} must be a number{limits}, got {value!r}"
            )
    if options.get("resized_height", 1) * options.get("resized_width", 1) > MAX_PIXELS:
        raise RecordError("malformed_record", f"{where}: the {kind} would be resized to over {MAX_PIXELS:,} pixels")
    return options


def _kind(part: Json) -> Kind | None:
    kind = str(part["type"]).removesuffix("_url")
    return next((known for known in KINDS if known == kind), None)


def _is_slot(part: Json) -> bool:
    kind = _kind(part)
    return kind is not None and _source(part, kind) is None


def _parts(message: Message) -> list[Json]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _bare(message: Message) -> Message:
    """What a chat template is shown: it has no use for a source, and some would take one for another part."""
    content = message.get("content")
    if not isinstance(content, list):
        return {**message, "content": content or ""}
    parts = [part if part["type"] == "text" else {"type": _kind(part)} for part in content]
    return {**message, "content": [_text(part) if part["type"] == "text" else part for part in parts]}


def _text(part: Json) -> Json:
    return {"type": "text", "text": part["text"]}


def _mismatch(where: str, kind: Kind, slots: int, given: int) -> str:
    return f"{where}: {slots} <{kind}> placeholder(s) in the text, but {given} {kind}(s) in the record"
