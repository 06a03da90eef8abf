"""About how many records large inputs hold, without reading all of them."""

from __future__ import annotations

import os

from tasks.inputs.compressed import is_compressed, read_compressed
from tasks.storage import open_input

SAMPLES = 32
SAMPLE_BYTES = 256 << 10
COMPRESSED_SAMPLE_BYTES = 4 << 20


def file_bytes(path: str) -> int:
    """The file's size."""
    with open_input(path) as file:
        return file.seek(0, os.SEEK_END)


def estimate_records(files: list[str], sizes: list[int]) -> int:
    """From the newlines in samples spread evenly over all bytes of the files; the same each time.

    A compressed file is sampled at its beginning, once for all the samples that fall into it.
    """
    step = max(sum(sizes) // SAMPLES, 1)
    sampled = newlines = before = 0
    for path, size in zip(files, sizes, strict=True):
        offsets = range(-before % step, size, step)
        read, found = (
            (_sample_compressed(path) if is_compressed(path) else _sample(path, offsets)) if offsets else (0, 0)
        )
        sampled, newlines, before = sampled + read, newlines + found, before + size
    return sum(sizes) * max(newlines, 1) // max(sampled, 1)


def _sample(path: str, offsets: range) -> tuple[int, int]:
    """Bytes read, and newlines in them."""
    sampled = newlines = 0
    with open_input(path) as file:
        for offset in offsets:
            file.seek(offset)
            sample = file.read(SAMPLE_BYTES)
            sampled += len(sample)
            newlines += sample.count(b"\n")
    return sampled, newlines


def _sample_compressed(path: str) -> tuple[int, int]:
    """Compressed bytes read, and newlines in what they hold."""
    read: list[int] = []
    newlines = seen = 0
    for block in read_compressed(path, SAMPLE_BYTES, lambda stored: read.append(len(stored))):
        newlines += block.count(b"\n")
        seen += len(block)
        if seen >= COMPRESSED_SAMPLE_BYTES:
            break
    return sum(read), newlines
