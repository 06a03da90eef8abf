"""Conversations as servers take them."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import ExifTags, Image

from tasks.config import PromptConfig
from tasks.engines.openai_messages import Messages, MessageWriter
from tasks.records import RecordError
from tests.prompts.conftest import PHOTOS, conversation, user


def write(settings: PromptConfig | None = None, /, **fields: Any) -> Messages:
    prompt = settings or PromptConfig()
    return MessageWriter(prompt, [str(PHOTOS)]).write(conversation(prompt, **fields))


def image_of(part: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))


def test_a_prompt_is_one_turn_and_reads_as_it_is() -> None:
    written = write(prompt="Hello")
    assert (written.text, written.turns) == ("Hello", [user("Hello")])


def test_turns_keep_what_the_protocol_knows() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    turns = [
        {"role": "system", "content": "Be brief.", "note": "dropped"},
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    written = write(messages=turns)
    assert written.text == "system: Be brief.\n\nuser: Weather?\n\nassistant: \n\ntool: rain"
    sent = {"name": "weather", "arguments": '{"city": "Köln"}'}
    assert written.turns == [
        {"role": "system", "content": "Be brief."},
        user("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": sent}]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]


def test_a_placeholder_is_text_where_nothing_says_that_the_model_sees() -> None:
    assert write(prompt="What does <image> mean in HTML?").turns == [user("What does <image> mean in HTML?")]
    with pytest.raises(RecordError, match="1 <image> placeholder"):
        write(PromptConfig(format="vision"), prompt="What does <image> mean?")


def test_media_stand_where_the_record_has_them_and_no_bytes_in_the_row() -> None:
    turns = [user("<image> A"), {"role": "assistant", "content": "B"}, user([{"type": "text", "text": "C <image>"}])]
    written = write(messages=turns, images=["coffee.png", "rocket.jpg"])
    assert written.text == "user: <image> A\n\nassistant: B\n\nuser: C <image>"
    first, second, third = (turn["content"] for turn in written.turns)
    assert second == "B"
    assert [part["type"] for part in (*first, *third)] == ["image_url", "text", "text", "image_url"]
    assert third[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert (PHOTOS / "rocket.jpg").read_bytes() == base64.b64decode(third[1]["image_url"]["url"].partition(",")[2])
    assert written.media_bytes > (PHOTOS / "coffee.png").stat().st_size


@pytest.mark.parametrize(
    ("settings", "options", "size"),
    [
        ({}, {}, (600, 400)),
        ({"max_pixels": 60_000}, {}, (300, 200)),
        ({"max_pixels": 60_000}, {"max_pixels": 15_000}, (150, 100)),
        ({"min_pixels": 960_000}, {}, (1200, 800)),
        ({}, {"resized_height": 50, "resized_width": 70}, (70, 50)),
    ],
)
def test_pixels_of_the_config_and_of_the_image(
    settings: dict[str, int], options: dict[str, int], size: tuple[int, int]
) -> None:
    part = {"type": "image", "image": "coffee.png", **options}
    content = write(PromptConfig(**settings), messages=[user([part, {"type": "text", "text": "?"}])]).turns[0][
        "content"
    ]
    assert image_of(content[0]).size == size


@pytest.mark.parametrize(("form", "mode"), [("TIFF", "CMYK"), ("BMP", "RGB"), ("PPM", "RGB"), ("PNG", "I;16")])
def test_forms_that_few_servers_read_are_sent_as_png(form: str, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (60, 40)).save(buffer, form)
    uri = f"data:image/x;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    image = image_of(write(prompt="?", images=[uri]).turns[0]["content"][0])
    assert (image.format, image.size) == ("PNG", (60, 40))


def _photo(exif: bytes) -> str:
    """40 x 20 as stored, red at its left."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, quality=95)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("exif", [b"", b"Exif\x00\x00no TIFF at all"])
def test_a_photo_is_sent_upright_however_it_is_encoded(exif: bytes) -> None:
    quarter = _photo(_turned(6))  # to be turned clockwise: red at the top
    as_it_is = write(prompt="?", images=[quarter]).turns[0]["content"][0]
    assert as_it_is["image_url"]["url"] == quarter  # its EXIF with it
    small = image_of(write(PromptConfig(max_pixels=200), prompt="?", images=[quarter]).turns[0]["content"][0])
    frame = write(prompt="<video>?", videos=[[quarter]]).turns[0]["content"][0]["video_url"]["url"]
    for image in (small, Image.open(io.BytesIO(base64.b64decode(frame.partition(",")[2])))):
        assert image.height == 2 * image.width
        red, _, blue = image.convert("RGB").getpixel((image.width // 2, 1))
        assert red > 200 > 50 > blue
    plain = write(PromptConfig(max_pixels=200), prompt="?", images=[_photo(exif)]).turns[0]["content"][0]
    assert image_of(plain).size == (20, 10)


@pytest.mark.parametrize(
    ("settings", "options", "named"),
    [
        ({}, {"resized_height": 0, "resized_width": 70}, "'resized_height'"),
        ({}, {"resized_height": 1_000_000, "resized_width": 1_000_000}, "the image would be resized"),
        ({}, {"resized_height": float("nan"), "resized_width": 70}, "'resized_height'"),
        ({}, {"min_pixels": 10**12}, "'min_pixels'"),
        ({}, {"min_pixels": float("inf")}, "'min_pixels'"),
        ({"min_pixels": 10**12}, {}, "prompt.min_pixels"),
    ],
)
def test_a_size_that_no_image_can_have_is_the_records_error(
    settings: dict[str, int], options: dict[str, float], named: str
) -> None:
    part = {"type": "image", "image": "coffee.png", **options}
    with pytest.raises(RecordError, match=f"line 1: {named}") as raised:
        write(PromptConfig(**settings), messages=[user([part])])
    assert raised.value.kind == "malformed_record"


def test_frames_are_a_video() -> None:
    written = write(prompt="<video>?", videos=[["coffee.png", "coffee.png"]])
    assert (written.frames, written.has_video, written.text) == (2, True, "<video>?")
    assert written.turns[0]["content"][0]["video_url"]["url"].startswith("data:video/jpeg;base64,")
    with pytest.raises(RecordError, match=r"prompt\.fps") as raised:
        write(prompt="<video>?", videos=[{"video": ["coffee.png"], "fps": 1.0}])
    assert raised.value.kind == "unsupported_media"
