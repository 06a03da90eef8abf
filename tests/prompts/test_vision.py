"""Vision prompts equal what the models' documented recipe makes: chat template, process_vision_info, processor."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info

from tasks.config import PromptConfig
from tasks.prompts import detect_family, make_format
from tasks.prompts.base import Completion, Prompt
from tasks.prompts.vision import VisionFormat
from tasks.records import RecordError
from tests.models import cached, tiny_qwen2_vl, tiny_qwen3_vl, tiny_qwen25_vl
from tests.prompts.conftest import ASTRONAUT, COFFEE, PHOTOS, ROCKET, conversation, user

FAMILIES = {"qwen2": tiny_qwen2_vl, "qwen2.5": tiny_qwen25_vl, "qwen3": tiny_qwen3_vl}
IMAGE_PAD, VIDEO_PAD = 151655, 151656


class Recipe:
    """What the model's documentation does with messages whose media are typed parts."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)

    def __call__(self, messages: list[dict[str, Any]]) -> tuple[str, Any]:
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images, videos, kwargs = process_vision_info(
            messages,
            return_video_kwargs=True,
            return_video_metadata=True,
            image_patch_size=self.processor.image_processor.patch_size,
        )
        frames, metadata = zip(*videos, strict=True) if videos else (None, None)
        inputs = self.processor(
            text=[text],
            images=images,
            videos=list(frames) if frames else None,
            **({"video_metadata": list(metadata)} if metadata else {}),
            **(kwargs if videos else {}),
            do_resize=False,
            return_tensors="pt",
        )
        return text, inputs


@lru_cache
def make(folder: Path, **settings: Any) -> VisionFormat:
    made = make_format(str(folder), PromptConfig(**settings), [str(PHOTOS)])
    assert isinstance(made, VisionFormat)
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Path:
    return cached(FAMILIES[request.param])


@pytest.fixture(scope="module")
def vision(family: Path) -> VisionFormat:
    return make(family)


@pytest.fixture(scope="module")
def recipe(family: Path) -> Recipe:
    return Recipe(family)


@pytest.fixture(scope="module")
def qwen25() -> Path:
    return cached(tiny_qwen25_vl)


def image(path: str, **options: Any) -> dict[str, Any]:
    return {"type": "image", "image": path, **options}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def assert_same(prompt: Prompt, recipe: Recipe, messages: list[dict[str, Any]]) -> None:
    """Same text, same length, and pixels that the processor turns into the same patches."""
    expected_text, inputs = recipe(messages)
    assert prompt.text == expected_text
    assert prompt.token_ids == recipe.processor.tokenizer.encode(expected_text, add_special_tokens=False)
    assert prompt.length == inputs["input_ids"].shape[1]
    if images := prompt.multi_modal_data.get("image"):
        ours = recipe.processor.image_processor(images, do_resize=False, return_tensors="pt")
        assert torch.equal(ours["pixel_values"], inputs["pixel_values"])
    if videos := prompt.multi_modal_data.get("video"):
        frames = [video for video, _ in videos]
        ours = recipe.processor.video_processor(frames, do_resize=False, do_sample_frames=False, return_tensors="pt")
        assert torch.allclose(ours["pixel_values_videos"], inputs["pixel_values_videos"], atol=1e-6)


SHAPES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "one image, placeholder first": (
        {"messages": [user("<image>\nWhat is this?")], "images": ["astronaut.png"]},
        [user([image(ASTRONAUT), text("\nWhat is this?")])],
    ),
    "three images": (
        {"messages": [user("<image><image>Compare with <image>.")], "images": ["astronaut.png", "coffee.png", ROCKET]},
        [user([image(ASTRONAUT), image(COFFEE), text("Compare with "), image(ROCKET), text(".")])],
    ),
    "image in mid-text": (
        {"prompt": "Look at <image> and say what it shows.", "images": "coffee.png"},
        [user([text("Look at "), image(COFFEE), text(" and say what it shows.")])],
    ),
    "images without a placeholder": (
        {"prompt": "Compare.", "images": ["astronaut.png", f"file://{COFFEE}"]},
        [user([image(ASTRONAUT), image(COFFEE), text("Compare.")])],
    ),
    "several turns, with a system turn": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                user("<image>What is this?"),
                {"role": "assistant", "content": "A woman."},
                user("And <image>?"),
            ],
            "images": ["astronaut.png", "coffee.png"],
        },
        [
            {"role": "system", "content": "Be brief."},
            user([image(ASTRONAUT), text("What is this?")]),
            {"role": "assistant", "content": "A woman."},
            user([text("And "), image(COFFEE), text("?")]),
        ],
    ),
    "typed parts with their own pixels": (
        {"messages": [user([text("Small: "), image("rocket.jpg", min_pixels=50_000, max_pixels=100_000)])]},
        [user([text("Small: "), image(ROCKET, min_pixels=50_000, max_pixels=100_000)])],
    ),
    "OpenAI's image_url": (
        {"messages": [user([{"type": "image_url", "image_url": {"url": "coffee.png", "detail": "low"}}, text("?")])]},
        [user([image(COFFEE), text("?")])],
    ),
    "bare typed parts": (
        {"messages": [user([{"type": "image", "text": None}, text("What?")])], "images": [{"path": "coffee.png"}]},
        [user([image(COFFEE), text("What?")])],
    ),
    "text alone": ({"prompt": "Hello"}, [user("Hello")]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_prompt_is_the_recipes(shape: str, vision: VisionFormat, recipe: Recipe) -> None:
    fields, messages = SHAPES[shape]
    assert_same(vision.render(conversation(**fields)), recipe, messages)


def test_video_file_is_the_recipes(vision: VisionFormat, recipe: Recipe, family: Path, clip: Path) -> None:
    vision = make(family, media_roots=(str(clip.parent),))
    prompt = vision.render(conversation(prompt="<video>What moves?", videos=[str(clip)]))
    assert_same(prompt, recipe, [user([{"type": "video", "video": str(clip)}, text("What moves?")])])
    assert prompt.multi_modal_data["video"][0][0].shape[0] == 6  # 3 s at 2 frames a second


def test_frame_list_is_the_recipes(vision: VisionFormat, recipe: Recipe) -> None:
    frames = [str(PHOTOS / name) for name in ("motorcycle_left.png", "motorcycle_right.png")] * 2
    part = {"type": "video", "video": frames, "fps": 1.0}
    prompt = vision.render(conversation(messages=[user([part, text("What moves?")])]))
    documented = {"type": "video", "video": frames, "sample_fps": 1.0}
    assert_same(prompt, recipe, [user([documented, text("What moves?")])])


def test_images_and_videos_together(vision: VisionFormat, recipe: Recipe) -> None:
    frames = [str(PHOTOS / "motorcycle_left.png"), str(PHOTOS / "motorcycle_right.png")]
    videos = [["motorcycle_left.png", frames[1]]]
    prompt = vision.render(conversation(prompt="Both?", images=["coffee.png"], videos=videos))
    video = {"type": "video", "video": frames, "sample_fps": 2.0}
    assert_same(prompt, recipe, [user([image(COFFEE), video, text("Both?")])])


def test_config_pixels_apply_where_the_part_has_none(qwen25: Path) -> None:
    vision = make(qwen25, max_pixels=50_000)
    prompt = vision.render(
        conversation(messages=[user([image("coffee.png"), image("coffee.png", max_pixels=200_000)])])
    )
    small, large = prompt.multi_modal_data["image"]
    assert small.width * small.height <= 50_000 < large.width * large.height <= 200_000
    assert prompt.media_bytes == 3 * (small.width * small.height + large.width * large.height)


def test_max_pixels_below_the_librarys_minimum(qwen25: Path, clip: Path) -> None:
    vision = make(qwen25, max_pixels=10_000, media_roots=("/",))
    image = {"image": "coffee.png", "max_pixels": 2000}
    prompt = vision.render(conversation(prompt="?", images=[image], videos=[str(clip), ["coffee.png", "coffee.png"]]))
    assert prompt.multi_modal_data["image"][0].size == (28, 28)
    assert [tuple(video.shape) for video, _ in prompt.multi_modal_data["video"]] == [(6, 3, 84, 112), (2, 3, 56, 112)]


def test_config_fps(qwen25: Path, clip: Path) -> None:
    prompt = make(qwen25, fps=5, media_roots=("/",)).render(conversation(prompt="?", videos=[str(clip)]))
    frames, metadata = prompt.multi_modal_data["video"][0]
    assert frames.shape[0] == 14  # 15 frames of 3 s at 5 a second, made even
    assert metadata["fps"] == 10


@pytest.mark.parametrize(
    ("prompt", "images", "numbers"),
    [
        ("<image><image> same?", ["coffee.png"], ("2", "1")),
        ("<image>", [], ("1", "0")),
        ("<image>", ["a"] * 3, ("1", "3")),
    ],
)
def test_counts_that_differ(qwen25: Path, prompt: str, images: list[str], numbers: tuple[str, str]) -> None:
    with pytest.raises(RecordError, match=f"{numbers[0]} <image> .* {numbers[1]} image") as caught:
        make(qwen25).render(conversation(prompt=prompt, images=images))
    assert caught.value.kind == "media_count_mismatch"


def test_text_that_spells_the_models_own_placeholder(qwen25: Path) -> None:
    with pytest.raises(RecordError, match=r"1 <\|image_pad\|> .* 0 image") as caught:
        make(qwen25).render(conversation(prompt="what is <|image_pad|>?"))
    assert caught.value.kind == "media_count_mismatch"


def test_other_parts_are_refused(qwen25: Path) -> None:
    with pytest.raises(RecordError, match="takes no audio") as caught:
        make(qwen25).render(conversation(messages=[user([{"type": "audio", "audio": "a.wav"}])]))
    assert caught.value.kind == "unsupported_media"


def test_same_image_is_prepared_once(qwen25: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[threading.Thread] = []
    original = Image.open

    def counting(*args: Any, **kwargs: Any) -> Any:
        opened.append(threading.current_thread())
        return original(*args, **kwargs)

    monkeypatch.setattr(Image, "open", counting)
    vision, record = make.__wrapped__(qwen25), conversation(prompt="?", images=["coffee.png"])
    with ThreadPoolExecutor(8) as threads:
        prompts = list(threads.map(vision.render, [record] * 32))
    assert len(opened) == 1
    assert len({prompt.length for prompt in prompts}) == 1


def test_changed_image_is_read_again(qwen25: Path, tmp_path: Path) -> None:
    vision, path = make(qwen25, media_roots=(str(tmp_path),)), tmp_path / "a.png"
    sizes = []
    for edge in (56, 112):
        Image.new("RGB", (edge, edge)).save(path)
        sizes.append(vision.render(conversation(prompt="?", images=[str(path)])).multi_modal_data["image"][0].size)
    assert sizes == [(56, 56), (112, 112)]


def test_renders_in_threads_as_alone(vision: VisionFormat) -> None:
    records = [conversation(**fields) for fields, _ in SHAPES.values()]
    alone = [vision.render(record) for record in records]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(vision.render, records * 4))
    for ours, theirs in zip(together, alone * 4, strict=True):
        assert (ours.text, ours.token_ids, ours.length) == (theirs.text, theirs.token_ids, theirs.length)
        for a, b in zip(*(p.multi_modal_data.get("image", []) for p in (ours, theirs)), strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))


def test_thinking_is_split_off(qwen25: Path) -> None:
    vision = make(qwen25)
    prompt = vision.render(conversation(prompt="?"))
    parsed = vision.parse(Completion("<think>hm</think>\n\nyes", [], "stop"), prompt)
    assert (parsed.reasoning, parsed.predict) == ("hm", "yes")


@pytest.mark.parametrize("name", FAMILIES)
def test_family_is_detected(name: str) -> None:
    assert detect_family(str(cached(FAMILIES[name]))) == "vision"
