"""Small pictures of the images that shown samples were asked about, read again from the dataset."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.config import GenerateConfig
from tasks.dataset import read_shard
from tasks.errors import RunError
from tasks.inputs.roots import dataset_roots
from tasks.prompts.conversation import read_conversation
from tasks.prompts.media import MediaReader
from tasks.prompts.placement import place_media
from tasks.records import DatasetManifest, Record, RecordError, Shard
from tasks.report.samples import Shown

if TYPE_CHECKING:
    from PIL import Image

MOST_RECORDS = 240
IMAGES_A_RECORD = 4
PIXELS = 192
"""Longest side of a thumbnail: some 5 kB as WebP."""

MOST_BYTES = 3 << 19
_MEDIA_MARKS = ("<|vision_start|>", "<image>")
"""What stands in a prompt for an image: of the vision format, and where a server was asked."""


def thumbnails(samples: Sequence[Shown], dataset: DatasetManifest, config: GenerateConfig) -> dict[int, list[str]]:
    """The images of up to MOST_RECORDS shown records by original_index: data URIs, at most MOST_BYTES of them.

    An image that is gone or broken by now is left out; media that records name by URL are not fetched again.
    """
    with_media = sorted({sample.index for sample in samples if _names_media(sample.fields.get("prompt", ""))})
    wanted = with_media[:: max(1, -(-len(with_media) // MOST_RECORDS))]
    reader = _reader(dataset, config)
    made = {
        record.original_index: uris
        for record in _records(dataset, wanted)
        if (uris := list(_thumbnails(record, reader, config)))
    }
    while sum(len(uri) for uris in made.values() for uri in uris) > MOST_BYTES:
        made = dict(list(made.items())[1::2])
    return made


def _names_media(prompt: str) -> bool:
    return any(mark in prompt for mark in _MEDIA_MARKS)


def _records(dataset: DatasetManifest, wanted: Sequence[int]) -> Iterator[Record]:
    """The records at these places, ascending; none of a shard whose file has changed since it was split."""
    for shard in dataset.shards:
        places = {place for place in wanted if shard.start <= place < shard.start + shard.records}
        if places:
            yield from _records_of(shard, places)


def _records_of(shard: Shard, places: set[int]) -> Iterator[Record]:
    last = max(places)
    try:
        for record in read_shard(shard):
            if record.original_index in places and isinstance(record, Record):
                yield record
            if record.original_index == last:
                return
    except RunError:
        return


def _reader(dataset: DatasetManifest, config: GenerateConfig) -> MediaReader:
    roots = dataset_roots(config.dataset.path, dataset.files)
    return MediaReader(roots, config.prompt.media_roots, allow_remote=False)


def _thumbnails(record: Record, reader: MediaReader, config: GenerateConfig) -> Iterator[str]:
    try:
        _, items = place_media(read_conversation(record, config.dataset, config.prompt))
    except RecordError:
        return
    for item in [item for item in items if item.kind == "image"][:IMAGES_A_RECORD]:
        try:
            image = reader.image(reader.find(item.source, "image", record.where), "", record.where)
            yield _data_uri(image)
        except (RecordError, OSError, ValueError):
            continue


def _data_uri(image: Image.Image) -> str:
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((PIXELS, PIXELS))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=65)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
