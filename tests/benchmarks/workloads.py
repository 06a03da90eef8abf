"""What is generated in comparisons: prompts and output lengths, the same for all sides and on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import models

WORDS = ("count", "the", "red", "houses", "and", "explain", "why", "each", "of", "them", "stands", "by", "a", "river")


@dataclass(frozen=True)
class Lengths:
    """Tokens a completion: log-normal around the median, cut at `most`."""

    median: int
    sigma: float
    most: int

    def draw(self, source: random.Random) -> int:
        return min(self.most, max(1, round(self.median * source.lognormvariate(0.0, self.sigma))))


@dataclass(frozen=True)
class Workload:
    """Records with a `prompt` of about so many words, `max_tokens` (which they reach: the end token is ignored), and
    `images` if asked for; and the model and the engine's settings that go with them.
    """

    about: str
    model: Callable[[Path], Path] = models.smollm2
    records: int = 96
    n: int = 2
    words: int = 40
    system_words: int = 0
    lengths: Lengths = Lengths(36, 0.9, 512)
    images: bool = False
    max_model_len: int = 1024
    max_num_seqs: int = 128

    @property
    def system(self) -> str | None:
        """The system prompt of all records."""
        return _text(random.Random(7), self.system_words) if self.system_words else None

    @property
    def engine(self) -> dict[str, str | int]:
        """Arguments that are vLLM's and our `engine` section's alike."""
        return {"dtype": "float32", "max_model_len": self.max_model_len, "max_num_seqs": self.max_num_seqs}

    def write(self, folder: Path, records: int) -> Path:
        """The dataset, as JSON lines, in the folder."""
        source = random.Random(0)
        path = folder / "prompts.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(records):
                record: dict[str, Any] = {"prompt": f"Task {number}: {_text(source, self.words)}"}
                if self.images:
                    record |= {"images": [_image(folder, number)]}
                file.write(json.dumps(record | {"max_tokens": self.lengths.draw(source)}) + "\n")
        return path


WORKLOADS = {
    "mixed": Workload("lengths log-normal, median 36 tokens"),
    "thinking": Workload(
        "as of a thinking model: the longest 20 times the median of 24", lengths=Lengths(24, 1.3, 480)
    ),
    "system": Workload("a shared system prompt of 400 words", system_words=400, lengths=Lengths(24, 0.7, 128)),
    "images": Workload(
        "an image a record, about 400 tokens of it; a tiny Qwen2.5-VL with random weights",
        model=models.tiny_qwen25_vl,
        records=192,
        n=1,
        images=True,
        max_model_len=2048,
        max_num_seqs=64,
    ),
}


def _text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def _image(folder: Path, number: int) -> str:
    """A smooth picture of photo size as JPEG; its name, relative to the folder."""
    from PIL import Image

    source = random.Random(number)
    small = Image.frombytes("RGB", (16, 12), source.randbytes(16 * 12 * 3))
    name = f"images/{number:05d}.jpg"
    (folder / "images").mkdir(exist_ok=True)
    size = (source.choice((560, 640, 720)), source.choice((420, 480, 560)))
    small.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return name
