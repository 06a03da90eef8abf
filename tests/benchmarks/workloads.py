"""What is generated in comparisons: prompts and output lengths, the same for all sides and on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import models
from tests.benchmarks import full_size

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
    """Records with a `prompt` of `words` (at least, at most), `max_tokens` (which they reach: the end token is
    ignored), and `images` if asked for; and the model and the engine's settings that go with them.

    `usual` are the usual script's own settings; it generates the first `usual_records` only (None: all). `asked_speed`
    is what our flow should make at least, in tokens/s.
    """

    about: str
    model: Callable[[Path], Path] = models.smollm2
    records: int = 192
    n: int = 1
    words: tuple[int, int] = (40, 40)
    system_words: int = 0
    lengths: Lengths = Lengths(36, 0.9, 512)
    images: bool = False
    max_model_len: int = 1024
    max_num_seqs: int | None = 128
    gpu: bool = False
    usual: dict[str, Any] = field(default_factory=dict)
    usual_records: int | None = None
    asked_speed: int | None = None

    @property
    def system(self) -> str | None:
        """The system prompt of all records."""
        return _text(random.Random(7), self.system_words) if self.system_words else None

    @property
    def engine(self) -> dict[str, Any]:
        """Arguments that are vLLM's and our `engine` section's alike."""
        chosen = {"max_model_len": self.max_model_len, "max_num_seqs": self.max_num_seqs}
        device = {"dtype": "bfloat16"} if self.gpu else {"dtype": "float32", "enforce_eager": True}
        return {**device, **{name: value for name, value in chosen.items() if value is not None}}

    @property
    def extra(self) -> dict[str, Any]:
        """Arguments that are vLLM's alone."""
        return {"load_format": "dummy"} if self.gpu else {}

    def write(self, folder: Path, records: int) -> Path:
        """The dataset, as JSON lines, in the folder."""
        source = random.Random(0)
        path = folder / "prompts.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number in range(records):
                record: dict[str, Any] = {"prompt": f"Task {number}: {_text(source, source.randint(*self.words))}"}
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
        "a photograph a record, about 400 tokens of it; a tiny Qwen2.5-VL with random weights",
        model=models.tiny_qwen25_vl,
        images=True,
        max_model_len=2048,
        max_num_seqs=64,
    ),
    "gpu": Workload(
        "Qwen3-8B's shape, prompts of 170 to 390 tokens of which 110 are shared, lengths log-normal, median 150 tokens",
        model=full_size.qwen3_8b,
        records=384,
        n=8,
        words=(50, 270),
        system_words=100,
        lengths=Lengths(150, 0.9, 2048),
        max_model_len=4096,
        max_num_seqs=None,
        gpu=True,
        usual={"enforce_eager": True, "gpu_memory_utilization": 0.95, "max_num_batched_tokens": 8192},
        usual_records=64,
        asked_speed=6500,  # on one H100
    ),
    "gpu-replicas": Workload(
        "Qwen3-8B's shape, lengths log-normal, median 100 tokens",
        model=full_size.qwen3_8b,
        records=1536,
        n=8,
        words=(50, 270),
        lengths=Lengths(100, 0.6, 512),
        max_model_len=4096,
        max_num_seqs=512,  # vLLM's largest CUDA graph: larger steps are launched by the CPU, kernel by kernel
        gpu=True,
    ),
    "gpu-images": Workload(
        "Qwen2.5-VL-7B's shape, a photograph a record, lengths log-normal, median 60 tokens",
        model=full_size.qwen25_vl_7b,
        records=1024,
        lengths=Lengths(60, 0.5, 256),
        images=True,
        max_model_len=4096,
        max_num_seqs=None,
        gpu=True,
        usual_records=128,
    ),
}


def _text(source: random.Random, words: int) -> str:
    return " ".join(source.choices(WORDS, k=words))


def _image(folder: Path, number: int) -> str:
    """A part of a real photograph, no two alike, about 600 x 450 pixels, as JPEG; its name, relative to the folder."""
    import skimage.data
    from PIL import Image

    source = random.Random(number)
    photo = Image.fromarray(getattr(skimage.data, source.choice(("astronaut", "coffee", "chelsea", "rocket")))())
    left, top = source.randrange(photo.width // 3), source.randrange(photo.height // 3)
    part = photo.crop((left, top, left + photo.width * 2 // 3, top + photo.height * 2 // 3))
    name = f"images/{number:05d}.jpg"
    (folder / "images").mkdir(exist_ok=True)
    size = (source.choice((560, 640, 720)), source.choice((420, 480, 560)))
    part.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return name
