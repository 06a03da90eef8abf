"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: chat template, media prepared by qwen_vl_utils, one placeholder an item.

Images and videos are resized here, in the feeder's threads, and the engine's processor is told not to do it again
(`do_resize=False`), as the models' documentation has it. So the number of tokens is known before the engine sees them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tasks.config import PromptConfig
from tasks.prompts.base import Completion, Parsed, Prompt
from tasks.prompts.chat import encode, parse_thinking, warmed
from tasks.prompts.conversation import Conversation, Message, tools_of
from tasks.prompts.media import Content, MediaReader, describe
from tasks.prompts.media_cache import ImageCache, image_bytes
from tasks.prompts.placement import MediaItem, place_media
from tasks.prompts.video import FACTOR, ensure_video_reader
from tasks.records import Json, RecordError

if TYPE_CHECKING:
    from PIL import Image

CACHE_BYTES = 256 << 20
IMAGE_MIN_TOKENS, VIDEO_MIN_TOKENS = 4, 128  # qwen_vl_utils' defaults, of an image and of two frames


class VisionFormat:
    """The model's chat template over text, images and videos. Relative media paths are relative to `dataset_roots`."""

    def __init__(
        self, model_path: str, config: PromptConfig, dataset_roots: list[str], trust_remote_code: bool = False
    ) -> None:
        from transformers import AutoProcessor

        self.takes_media = True
        self.engine_args: Json = {}
        self.sampling_args: Json = {}
        self._config = config
        self._kwargs = dict(config.chat_template_kwargs)
        if config.enable_thinking is not None:
            self._kwargs["enable_thinking"] = config.enable_thinking
        processor = AutoProcessor.from_pretrained(
            model_path, local_files_only=True, trust_remote_code=trust_remote_code
        )
        self._tokenizer = warmed(processor.tokenizer)
        self._template = processor.chat_template or self._tokenizer.chat_template
        self._grid = _Grid(processor)
        self._reader = MediaReader(dataset_roots, config.media_roots, config.allow_remote_media)
        self._cache = ImageCache(CACHE_BYTES)
        ensure_video_reader()

    def render(self, conversation: Conversation) -> Prompt:
        messages, items = place_media(conversation)
        text = self._text(messages, conversation)
        token_ids = encode(self._tokenizer, text, conversation.where, add_special_tokens=False)
        images = [item for item in items if item.kind == "image"]
        videos = [item for item in items if item.kind == "video"]
        self._grid.require_placeholders(token_ids, len(images), len(videos), conversation.where)
        return self._prompt(
            text,
            token_ids,
            [self._image(item, conversation.where) for item in images],
            [self._video(item, conversation.where) for item in videos],
        )

    def parse(self, completion: Completion, prompt: Prompt) -> Parsed:
        return parse_thinking(completion, prompt)

    def _text(self, messages: list[Message], conversation: Conversation) -> str:
        tools = tools_of(conversation)
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tools=tools,
                tokenize=False,
                add_generation_prompt=True,
                **self._kwargs,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise RecordError("template_error", f"{conversation.where}: the chat template refuses: {error}") from error
        return text

    def _prompt(self, text: str, token_ids: list[int], images: list[Any], videos: list[tuple[Any, Json]]) -> Prompt:
        length = len(token_ids)
        length += sum(self._grid.image_tokens(image) - 1 for image in images)
        length += sum(self._grid.video_tokens(video, metadata, self._tokenizer) - 1 for video, metadata in videos)
        data: Json = {name: media for name, media in (("image", images), ("video", videos)) if media}
        kwargs: Json = {"do_resize": False} if data else {}
        return Prompt(
            text=text,
            token_ids=token_ids,
            length=length,
            multi_modal_data=data,
            mm_processor_kwargs=kwargs | ({"do_sample_frames": False} if videos else {}),
            media_bytes=sum(map(image_bytes, images)) + sum(int(video.nbytes) for video, _ in videos),
        )

    def _image(self, item: MediaItem, where: str) -> Image.Image:
        content = self._reader.find(item.source, "image", where)
        options = self._pixels(item.options, IMAGE_MIN_TOKENS)
        if isinstance(content, bytes):
            return self._prepare_image(content, options, describe(item.source), where)
        stat = content.stat()
        key = (content, stat.st_mtime_ns, stat.st_size, tuple(sorted(options.items())))
        return self._cache.get(key, lambda: self._prepare_image(content, options, describe(item.source), where))

    def _prepare_image(self, content: Content, options: Json, name: str, where: str) -> Image.Image:
        from qwen_vl_utils import process_vision_info

        image = self._reader.image(content, name, where)
        try:
            images, _ = process_vision_info(
                [_turn({"type": "image", "image": image, **options})], image_patch_size=self._grid.patch
            )
        except AssertionError as error:
            raise RecordError("malformed_record", f"{where}: image {name}: {error}") from error
        except Exception as error:  # Pillow and qwen_vl_utils refuse with various errors
            kind = "image_too_small" if min(image.size) < self._grid.factor else "image_broken"
            limits = "".join(f", {option} {value}" for option, value in options.items())
            message = f"{where}: image {name} ({image.width} x {image.height}{limits}) cannot be prepared: {error}"
            raise RecordError(kind, message) from error
        prepared: Image.Image = images[0]
        return prepared

    def _video(self, item: MediaItem, where: str) -> tuple[Any, Json]:
        """The sampled frames (uint8 tensor, T C H W) and their metadata, as vLLM takes them."""
        if isinstance(item.source, list):
            frames = [self._frame(frame, where) for frame in item.source]
            return self._prepare_video(frames, self._frame_options(item.options), f"of {len(frames)} frames", where)
        content = self._reader.find(item.source, "video", where)
        options = self._pixels(item.options, VIDEO_MIN_TOKENS)
        if self._config.fps is not None and "nframes" not in options:
            options.setdefault("fps", self._config.fps)
        with _as_file(content) as path:
            return self._prepare_video(str(path), options | {FACTOR: self._grid.factor}, describe(item.source), where)

    def _frame(self, source: Any, where: str) -> Image.Image:
        return self._reader.image(self._reader.find(source, "image", where), describe(source), where)

    def _frame_options(self, options: Json) -> Json:
        """A list of frames is not sampled again: its fps says how far apart the frames are."""
        options = self._pixels(options, VIDEO_MIN_TOKENS)
        fps = options.pop("fps", self._config.fps)
        return options if fps is None else {"sample_fps": fps, **options}

    def _prepare_video(self, video: str | list[Any], options: Json, name: str, where: str) -> tuple[Any, Json]:
        import torch
        from qwen_vl_utils import process_vision_info

        if not video:
            raise RecordError("video_broken", f"{where}: video {name} has no frames")
        try:
            _, videos, _ = process_vision_info(
                [_turn({"type": "video", "video": video, **options})],
                image_patch_size=self._grid.patch,
                return_video_kwargs=True,
                return_video_metadata=True,
            )
        except Exception as error:  # decoders and qwen_vl_utils refuse with various errors
            raise RecordError("video_broken", f"{where}: video {name} cannot be prepared: {error}") from error
        frames, metadata = videos[0]
        # Whole numbers from 0 to 255 that came as floats: a quarter of the memory.
        return frames.to(torch.uint8), metadata

    def _pixels(self, options: Json, min_tokens: int) -> Json:
        """The item's options over the config's; a max_pixels below qwen_vl_utils' own minimum lowers that too."""
        settings = {"min_pixels": self._config.min_pixels, "max_pixels": self._config.max_pixels}
        merged = {name: value for name, value in settings.items() if value is not None} | options
        least = min_tokens * self._grid.factor**2
        if merged.get("max_pixels", least) < least:
            merged.setdefault("min_pixels", min(self._grid.factor**2, merged["max_pixels"]))
        return merged


class _Grid:
    """How a model family cuts media into patches, and how many tokens that makes."""

    def __init__(self, processor: Any) -> None:
        images = processor.image_processor
        self.patch = int(images.patch_size)
        self.merge = int(images.merge_size)
        self.factor = self.patch * self.merge
        self._frames = int(images.temporal_patch_size)
        self._image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self._video_token = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
        self._timed = type(processor).__name__.startswith("Qwen3")
        self._keeps_outer_markers = _replaces_only_video_token(processor)

    def require_placeholders(self, token_ids: list[int], images: int, videos: int, where: str) -> None:
        """One placeholder an item: text that spells the model's own would shift all that follow."""
        for name, token, items in (("image", self._image_token, images), ("video", self._video_token, videos)):
            if (found := token_ids.count(token)) != items:
                message = f"{where}: {found} <|{name}_pad|> in the rendered prompt, but {items} {name}(s) in the record"
                raise RecordError("media_count_mismatch", message)

    def image_tokens(self, image: Image.Image) -> int:
        """Tokens of a prepared image."""
        return (image.height // self.factor) * (image.width // self.factor)

    def video_tokens(self, video: Any, metadata: Json, tokenizer: Any) -> int:
        """Tokens of prepared frames; Qwen3-VL writes the time and a pair of markers around each group of frames."""
        count, _, height, width = map(int, video.shape)
        groups = -(-count // self._frames)
        tokens = groups * (height // self.factor) * (width // self.factor)
        if not self._timed:
            return tokens
        times = _times(metadata, self._frames)
        tokens += sum(len(tokenizer.encode(f"<{time:.1f} seconds>", add_special_tokens=False)) + 2 for time in times)
        return tokens if self._keeps_outer_markers else tokens - 2


def _times(metadata: Json, group: int) -> list[float]:
    """Seconds at the middle of each group of frames."""
    indices = [int(index) for index in metadata["frames_indices"]]
    indices += [indices[-1]] * (-len(indices) % group)
    seconds = [index / metadata["fps"] for index in indices]
    return [(seconds[i] + seconds[i + group - 1]) / 2 for i in range(0, len(seconds), group)]


def _replaces_only_video_token(processor: Any) -> bool:
    """transformers from 5.10 on expands the bare video token, and leaves the markers around it in the prompt."""
    from transformers import ProcessorMixin

    own = getattr(type(processor), "replace_video_token", None)
    return own is not None and own is not getattr(ProcessorMixin, "replace_video_token", None)


@contextmanager
def _as_file(content: Content) -> Iterator[Path]:
    if isinstance(content, Path):
        yield content
        return
    descriptor, name = tempfile.mkstemp(prefix="video-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        yield Path(name)
    finally:
        Path(name).unlink()


def _turn(part: Json) -> Json:
    return {"role": "user", "content": [part]}
