from __future__ import annotations

import base64
import io
from pathlib import Path

import orjson
import pytest
from PIL import Image

from tasks.config import DatasetConfig, GenerateConfig
from tasks.dataset import read_shard
from tasks.engines.openai_messages import MessageWriter
from tasks.prompts.conversation import read_conversation
from tasks.records import DatasetManifest, Json, Record
from tasks.report import thumbnails as module
from tasks.report.samples import Shown
from tasks.report.thumbnails import PIXELS
from tasks.split_dataset import split

PROMPT = "<|vision_start|><|image_pad|><|vision_end|>what is it?"


def _dataset(folder: Path, records: list[Json]) -> tuple[DatasetManifest, GenerateConfig]:
    path = folder / "data.jsonl"
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    config = GenerateConfig.model_validate(
        {"model": {"source": "m"}, "dataset": {"path": str(path), "shard_size": 2}, "output": {"path": "out"}}
    )
    return split(DatasetConfig(path=str(path), shard_size=2), 1), config


def _image(folder: Path, name: str, mode: str = "RGB", size: tuple[int, int] = (800, 400)) -> str:
    Image.new(mode, size, 128).save(folder / name)
    return name


def _shown(index: int, prompt: str = PROMPT, sample: int = 0) -> Shown:
    return Shown(index, sample, (), {"prompt": prompt})


def test_images_are_made_small_once_a_record(tmp_path: Path) -> None:
    records: list[Json] = [{"prompt": "text only"}] * 3
    records.append({"prompt": "two", "images": [_image(tmp_path, "a.png"), _image(tmp_path, "b.png", "RGBA", (9, 9))]})
    samples = [_shown(0, "text only"), _shown(3), _shown(3, sample=1)]
    images = module.thumbnails(samples, *_dataset(tmp_path, records))
    assert list(images) == [3]
    sizes = [_decoded(uri).size for uri in images[3]]
    assert sizes == [(PIXELS, PIXELS // 2), (9, 9)]


def test_images_that_a_server_was_asked_about_are_shown(tmp_path: Path) -> None:
    record: Json = {"prompt": "what is it?", "images": [_image(tmp_path, "a.png")]}
    dataset, config = _dataset(tmp_path, [record])
    (read,) = read_shard(dataset.shards[0])
    assert isinstance(read, Record)
    conversation = read_conversation(read, config.dataset, config.prompt)
    prompt = MessageWriter(config.prompt, [str(tmp_path)]).write(conversation).text
    assert len(module.thumbnails([_shown(0, prompt)], dataset, config)[0]) == 1


def test_typed_parts_and_data_uris_are_found(tmp_path: Path) -> None:
    _image(tmp_path, "a.png")
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "?"}]
    images = module.thumbnails([_shown(0)], *_dataset(tmp_path, [{"messages": [{"role": "user", "content": content}]}]))
    assert len(images[0]) == 1


@pytest.mark.parametrize("source", ["gone.png", "../outside.png", "http://127.0.0.1:9/x.png", "broken.png", 7])
def test_what_cannot_be_shown_is_left_out(tmp_path: Path, source: object) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    _image(tmp_path, "outside.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    records: list[Json] = [{"prompt": "p", "images": [source, _image(folder, "good.png")]}]
    assert len(module.thumbnails([_shown(0)], *_dataset(folder, records))[0]) == 1


def test_all_together_stay_below_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    records: list[Json] = [{"prompt": "p", "images": [_image(tmp_path, f"{i}.png")]} for i in range(9)]
    samples = [_shown(i) for i in range(9)]
    images = module.thumbnails(samples, *_dataset(tmp_path, records))
    assert 0 < sum(len(uri) for uris in images.values() for uri in uris) <= 1000


def test_of_many_records_an_even_part_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RECORDS", 3)
    name = _image(tmp_path, "a.png")
    samples = [_shown(i) for i in range(8)]
    images = module.thumbnails(samples, *_dataset(tmp_path, [{"prompt": "p", "images": name}] * 8))
    assert list(images) == [0, 3, 6]


def test_a_dataset_that_is_gone_shows_no_images(tmp_path: Path) -> None:
    dataset, config = _dataset(tmp_path, [{"prompt": "p", "images": _image(tmp_path, "a.png")}])
    (tmp_path / "data.jsonl").unlink()
    assert module.thumbnails([_shown(0)], dataset, config) == {}


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
