"""Media keep their place in the text, whichever way a record says it."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.prompts.placement import MediaItem, place_media
from tasks.records import RecordError
from tests.prompts.conftest import conversation, user

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def placed(**fields: Any) -> tuple[list[Any], list[Any]]:
    messages, items = place_media(conversation(**fields))
    return [message["content"] for message in messages], [item.source for item in items]


def test_placeholders_are_replaced_where_they_stand() -> None:
    contents, sources = placed(prompt="a <image> b <video><image>", images=["1", "2"], videos=["v"])
    assert contents == [[text("a "), IMAGE, text(" b "), VIDEO, IMAGE]]
    assert sources == ["1", "v", "2"]


def test_media_without_a_place_come_first_in_the_first_user_turn() -> None:
    messages = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}, user("c")]
    contents, sources = placed(messages=messages, images=["1", "2"], videos=["v"])
    assert contents == ["s", [IMAGE, IMAGE, VIDEO, text("a")], "b", "c"]
    assert sources == ["1", "2", "v"]


def test_sources_are_taken_in_the_order_of_the_conversation() -> None:
    part = {"type": "image", "image": "own"}
    messages = [user("x <image>"), {"role": "assistant", "content": "<image> y"}, user([part, {"type": "image"}])]
    contents, sources = placed(messages=messages, images=["1", "2", "3"])
    assert contents == [[text("x "), IMAGE], [IMAGE, text(" y")], [IMAGE, IMAGE]]
    assert sources == ["1", "2", "own", "3"]


def test_placeholder_is_text_where_all_media_bring_their_source() -> None:
    contents, sources = placed(messages=[user([{"type": "image", "url": "u"}, text("the <image> tag")])])
    assert (contents, sources) == ([[IMAGE, text("the <image> tag")]], ["u"])


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "image": "a"}, "a"),
        ({"type": "image", "path": "a", "url": None}, "a"),
        ({"type": "image_url", "image_url": {"url": "a", "detail": "high"}}, "a"),
        ({"type": "image_url", "image_url": "a"}, "a"),
        ({"type": "image", "image": {"bytes": b"x", "path": None}}, {"bytes": b"x", "path": None}),
        ({"type": "image", "bytes": b"x"}, {"bytes": b"x", "path": None}),
        ({"type": "video", "video": ["f1", "f2"]}, ["f1", "f2"]),
        ({"type": "video_url", "video_url": {"url": "v"}}, "v"),
    ],
)
def test_sources_of_typed_parts(part: dict[str, Any], source: Any) -> None:
    contents, sources = placed(messages=[user([part])])
    assert contents == [[{"type": part["type"].removesuffix("_url")}]]
    assert sources == [source]


def test_options_of_parts_and_of_entries() -> None:
    part = {"type": "image", "image": "a", "min_pixels": 1, "max_pixels": None, "fps": 3}
    entry = {"video": "v", "fps": 1.5, "max_frames": 8}
    _, items = place_media(conversation(messages=[user([part, {"type": "video"}])], videos=[entry]))
    assert items == [
        MediaItem("image", "a", {"min_pixels": 1}),
        MediaItem("video", "v", {"fps": 1.5, "max_frames": 8}),
    ]


@pytest.mark.parametrize("value", ["2", True, -1, [1]])
def test_option_that_is_no_number(value: Any) -> None:
    with pytest.raises(RecordError, match="'max_pixels' of the image must be a number") as caught:
        placed(messages=[user([{"type": "image", "image": "a", "max_pixels": value}])])
    assert caught.value.kind == "malformed_record"


def test_no_user_turn_to_put_media_in() -> None:
    with pytest.raises(RecordError, match="no user turn") as caught:
        placed(messages=[{"role": "tool", "content": "x"}], images=["1"])
    assert caught.value.kind == "media_count_mismatch"


def test_text_alone_is_left_alone() -> None:
    assert placed(messages=[user("a"), {"role": "assistant", "content": "b"}, user([text("c")])])[0] == [
        "a",
        "b",
        [text("c")],
    ]
