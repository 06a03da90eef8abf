"""Media found, allowed or refused; and ten ways for them to be bad, each an error of its record alone."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import numpy as np
import pytest
from PIL import Image

from tasks.config import PromptConfig
from tasks.inputs.roots import dataset_roots
from tasks.prompts import make_format
from tasks.prompts.base import Prompt
from tasks.prompts.media import MediaReader, _normal
from tasks.prompts.media_cache import ImageCache
from tasks.prompts.vision import VisionFormat
from tasks.records import RecordError
from tests.models import cached, tiny_qwen25_vl
from tests.prompts.conftest import COFFEE, conversation, user

COFFEE_BYTES = Path(COFFEE).read_bytes()
COFFEE_SIZE = (588, 392)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset's folder, with one good image and a shelf of bad ones; a secret lies beside it."""
    root = tmp_path_factory.mktemp("media")
    data = root / "data"
    data.mkdir()
    (data / "good.png").write_bytes(COFFEE_BYTES)
    (data / "name with space.png").write_bytes(COFFEE_BYTES)
    (root / "secret.png").write_bytes(COFFEE_BYTES)
    (data / "link.png").symlink_to(root / "secret.png")
    (data / "empty.png").write_bytes(b"")
    (data / "truncated.png").write_bytes(COFFEE_BYTES[:50_000])
    (data / "text.png").write_text("I am no image")
    flipped = bytearray(COFFEE_BYTES)
    flipped[40_000:40_100] = bytes(100)
    (data / "flipped.png").write_bytes(flipped)
    (data / "folder.png").mkdir()
    (data / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    Image.new("1", (20_000, 20_000)).save(data / "bomb.png")
    Image.new("1", (11_000, 9_000)).save(data / "poster.png")
    Image.new("RGB", (3000, 10)).save(data / "strip.png")
    Image.new("RGB", (8000, 35)).save(data / "ribbon.png")
    Image.new("RGB", (1, 1)).save(data / "dot.png")
    Image.new("RGB", (8, 8)).save(data / "icon.png")
    (data / "broken.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(1000))
    return data


@pytest.fixture(scope="module")
def vision(folder: Path) -> VisionFormat:
    return make(folder)


@lru_cache
def make(*roots: Any, **settings: Any) -> VisionFormat:
    made = make_format(str(cached(tiny_qwen25_vl)), PromptConfig(**settings), [str(root) for root in roots])
    assert isinstance(made, VisionFormat)
    return made


def render(vision: VisionFormat, **fields: Any) -> Prompt:
    return vision.render(conversation(prompt="What?", **fields))


def refusal(vision: VisionFormat, **fields: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        render(vision, **fields)
    assert caught.value.message.startswith("data.jsonl line 1: ")
    assert len(caught.value.message) < 1000
    return caught.value


BAD_IMAGES = {
    "missing.png": "image_not_found",
    "folder.png": "image_not_found",
    "nul\0byte.png": "image_not_found",
    "long" * 2000: "image_not_found",
    "empty.png": "image_broken",
    "truncated.png": "image_broken",
    "flipped.png": "image_broken",
    "text.png": "image_broken",
    "program.eps": "image_broken",
    "ribbon.png": "image_broken",
    "data:image/png;base64,!!!": "image_broken",
    "data:image/png;base64,aGVsbG8=": "image_broken",
    "bomb.png": "image_too_large",
    "poster.png": "image_too_large",
    "strip.png": "image_too_small",
    "dot.png": "image_too_small",
    "link.png": "media_outside_dataset",
    "../secret.png": "media_outside_dataset",
    "/etc/passwd": "media_outside_dataset",
    "file:///etc/passwd": "media_outside_dataset",
    "http://127.0.0.1:9/a.png": "remote_media_not_allowed",
    "s3://bucket/a.png": "remote_media_not_allowed",
    "": "malformed_record",
}


@pytest.mark.parametrize("name", BAD_IMAGES, ids=lambda name: name[:30].replace("\0", "_"))
def test_bad_image_is_an_error_of_its_record(name: str, vision: VisionFormat) -> None:
    assert refusal(vision, images=[name]).kind == BAD_IMAGES[name]
    assert render(vision, images=["good.png"]).multi_modal_data["image"][0].size == COFFEE_SIZE


@pytest.mark.parametrize("source", [7, {"bytes": None, "path": None}, {"bytes": 7}, [1]])
def test_source_of_a_wrong_type(source: Any, vision: VisionFormat) -> None:
    assert refusal(vision, images=[source]).kind == "malformed_record"


def test_option_of_a_wrong_type(vision: VisionFormat) -> None:
    error = refusal(vision, images=[{"image": "good.png", "max_pixels": "many"}])
    assert (error.kind, "'max_pixels'" in error.message) == ("malformed_record", True)


def test_minimum_over_maximum(vision: VisionFormat) -> None:
    image = {"image": "good.png", "min_pixels": 200_000, "max_pixels": 100_000}
    assert refusal(vision, images=[image]).kind == "malformed_record"


BAD_VIDEOS = {
    "missing.mp4": "video_not_found",
    "broken.mp4": "video_broken",
    "text.png": "video_broken",
    "/etc/passwd": "media_outside_dataset",
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_bad_video_is_an_error_of_its_record(name: str, vision: VisionFormat) -> None:
    assert refusal(vision, videos=[name]).kind == BAD_VIDEOS[name]


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        (["good.png", "missing.png"], "image_not_found"),
        (["good.png", "icon.png"], "video_broken"),
        ([], "video_broken"),
    ],
)
def test_bad_frames(frames: list[str], kind: str, vision: VisionFormat) -> None:
    assert refusal(vision, videos=[frames]).kind == kind


def good_sources(folder: Path) -> Iterator[Any]:
    encoded = base64.b64encode(COFFEE_BYTES).decode()
    yield from ("good.png", "./good.png", str(folder / "good.png"), f"file://{folder}/good.png", "name with space.png")
    yield f"file://{folder}/name%20with%20space.png"
    yield f"data:image/png;base64,{encoded}"
    yield f"data:image/png;base64,{base64.encodebytes(COFFEE_BYTES).decode()}"
    yield f"data:image/png,{quote(COFFEE_BYTES)}"
    yield {"bytes": COFFEE_BYTES, "path": None}
    yield {"bytes": COFFEE_BYTES, "path": "elsewhere.png"}
    yield {"bytes": encoded}
    yield {"bytes": None, "path": "good.png"}


def test_every_way_to_name_an_image(folder: Path, vision: VisionFormat) -> None:
    for source in good_sources(folder):
        image = render(vision, images=[source]).multi_modal_data["image"][0]
        assert (image.size, image.mode) == (COFFEE_SIZE, "RGB")


def test_tiny_image_is_scaled_up(vision: VisionFormat) -> None:
    assert render(vision, images=["icon.png"]).multi_modal_data["image"][0].size == (56, 56)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_modes_become_rgb(mode: str, vision: VisionFormat) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (60, 60)).save(buffer, "TIFF" if mode in ("CMYK", "F") else "PNG")
    assert render(vision, images=[{"bytes": buffer.getvalue()}]).multi_modal_data["image"][0].mode == "RGB"


def test_media_roots_allow_more(folder: Path) -> None:
    secret = str(folder.parent / "secret.png")
    assert render(make(folder, media_roots=(str(folder.parent),)), images=[secret, "link.png"]).length > 500
    assert render(make(folder, media_roots=("/",)), images=[secret]).length > 250


def test_second_root_is_looked_through(folder: Path, tmp_path: Path) -> None:
    assert render(make(tmp_path, folder), images=["good.png"]).length > 250


def test_dataset_in_an_object_store(vision: VisionFormat) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/set/images/a.png": COFFEE_BYTES, "/other/a.png": COFFEE_BYTES})
    remote = make("memory://set")
    for source in ("images/a.png", "memory://set/images/a.png"):
        assert render(remote, images=[source]).multi_modal_data["image"][0].size == COFFEE_SIZE
    assert refusal(remote, images=["images/b.png"]).kind == "image_not_found"
    assert refusal(remote, images=["../other/a.png"]).kind == "remote_media_not_allowed"
    for source in ("./images/a.png", "images/../images/a.png"):
        assert render(remote, images=[source]).multi_modal_data["image"][0].size == COFFEE_SIZE


def test_only_dots_are_taken_out_of_a_stores_names() -> None:
    assert [_normal(f"s3://b/{key}") for key in ("a//b.png", "./a/../b.png")] == ["s3://b/a//b.png", "s3://b/b.png"]


def test_no_other_way_to_a_file_is_opened_by_allowing_urls(folder: Path) -> None:
    for source in ("memory://other/a.png", f"local://{folder}/good.png", "simplecache::http://127.0.0.1:9/a.png"):
        refused = refusal(make(folder, allow_remote_media=True), images=[source])
        assert refused.kind in ("malformed_record", "image_not_found")


def test_a_record_sees_the_images_beside_its_own_file(tmp_path: Path) -> None:
    """And those below dataset.path; another file's folder is not looked through."""
    files = [str(tmp_path / name / "d.jsonl") for name in ("test", "train", "train/more")]
    roots = dataset_roots(str(tmp_path), files)
    assert roots == [str(tmp_path), *(str(Path(file).parent) for file in files)]
    assert dataset_roots(f"{tmp_path}/*/d.jsonl", files[:2]) == roots[1:3]
    assert dataset_roots("s3://b/set/", ["s3://b/set/a/d.jsonl"]) == ["s3://b/set", "s3://b/set/a"]
    for number, name in enumerate(("test", "train")):
        (tmp_path / name / "img").mkdir(parents=True)
        Image.new("RGB", (56 * (number + 1), 56)).save(tmp_path / name / "img/0.png")
    reader = MediaReader(roots, [], allow_remote=False)

    def width(source: str, file: str) -> int:
        where = f"{file} line 1"
        return reader.image(reader.find(source, "image", where), source, where).width

    assert [width("img/0.png", file) for file in files] == [56, 112, 112]
    assert width("test/img/0.png", files[1]) == width("../test/img/0.png", files[1]) == 56
    (tmp_path / "train/img/0.png").unlink()
    with pytest.raises(RecordError) as caught:
        width("img/0.png", files[1])
    assert caught.value.kind == "image_not_found"


@pytest.mark.parametrize(("kind", "white"), [("uint16", 65535), ("float32", 1), ("float32", 255), ("uint8", 255)])
def test_grey_of_any_depth_keeps_its_shades(kind: str, white: int, vision: VisionFormat) -> None:
    grey = np.full((64, 64), white, dtype=kind)
    grey[:, 32:] = white / 2
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "TIFF")
    shown = render(vision, images=[{"bytes": buffer.getvalue()}]).multi_modal_data["image"][0]
    assert [round(shown.getpixel((x, 30))[0] / 127.5) for x in (8, 48)] == [2, 1]


_TOO_LARGE = [{"min_pixels": 1e12}, {"resized_height": 0}, {"resized_height": 1e5, "resized_width": 1e5}]


@pytest.mark.parametrize("options", _TOO_LARGE)
def test_sizes_that_no_memory_holds_are_refused(options: dict[str, float], vision: VisionFormat) -> None:
    part = {"type": "image", "image": "good.png", "max_pixels": 1e13, **options}
    assert refusal(vision, messages=[user([part])]).kind == "malformed_record"


class Handler(BaseHTTPRequestHandler):
    failures = 0

    def do_GET(self) -> None:
        status = {"/gone.png": 404, "/secret.png": 403}.get(self.path, 200)
        if self.path == "/flaky.png" and Handler.failures:
            Handler.failures -= 1
            status = 503
        self.send_response(status)
        if self.path == "/cut.png":
            self.send_header("Content-Length", str(len(COFFEE_BYTES) + 1))
        self.end_headers()
        if status == 200:
            self.wfile.write(COFFEE_BYTES)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_images_by_http(server: str, folder: Path, vision: VisionFormat) -> None:
    allowed = make(folder, allow_remote_media=True)
    Handler.failures = 1
    for name in ("a.png", "flaky.png", "a b.png", "ü.png?x=%20"):
        assert render(allowed, images=[f"{server}/{name}"]).multi_modal_data["image"][0].size == COFFEE_SIZE
    assert refusal(allowed, images=[f"{server}/gone.png"]).kind == "image_not_found"
    assert refusal(allowed, images=[f"{server}/secret.png"]).kind == "media_unreachable"
    assert "it ended after" in refusal(allowed, images=[f"{server}/cut.png"]).message
    assert refusal(vision, images=[f"{server}/a.png"]).kind == "remote_media_not_allowed"


def test_server_that_is_not_there(folder: Path) -> None:
    assert (
        refusal(make(folder, allow_remote_media=True), images=["http://127.0.0.1:9/a.png"]).kind == "media_unreachable"
    )


def test_cache_keeps_within_its_bytes() -> None:
    cache, made = ImageCache(max_bytes=2 * 30_000), []

    def get(key: str) -> None:
        def make() -> Image.Image:
            made.append(key)
            return Image.new("RGB", (100, 100))

        cache.get(key, make)

    for key in "ababcab":
        get(key)
    assert made == ["a", "b", "c", "a", "b"]


def test_cache_forgets_failures() -> None:
    cache = ImageCache(max_bytes=1000)

    def fail() -> Image.Image:
        raise RecordError("image_broken", "broken")

    for _ in range(2):
        with pytest.raises(RecordError):
            cache.get("a", fail)
    assert cache.get("a", lambda: Image.new("RGB", (1, 1))).size == (1, 1)
