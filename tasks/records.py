"""What the files of a run hold: records in, samples and error rows out, and the manifests that vouch for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]

GENERATED_COLUMNS = (
    *("original_index", "sample_id", "prompt", "predict", "reasoning", "answer", "finish_reason"),
    *("prompt_tokens", "completion_tokens", "commentary", "tool_calls"),
)
"""Of data.jsonl: what is made. `id` and `label` are the record's own."""


class RecordError(Exception):
    """A record (or one of its samples) cannot be made; it becomes a row of errors.jsonl and the run goes on.

    `kind` is one of the short kinds that `errors.jsonl` uses, such as `malformed_record` or `prompt_too_long`;
    the message tells a person what to do about it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the input dataset.

    `original_index` is its 0-based position in the whole dataset, `digest` a hash of the line's bytes, `where` the
    file and 1-based line number for messages. `fields` is the parsed object.
    """

    original_index: int
    digest: str
    where: str
    fields: Json


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A line that is not a record: not JSON, or not an object. Same place in the dataset, nothing to generate."""

    original_index: int
    digest: str
    where: str
    error: RecordError


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of a record: a row of data.jsonl."""

    original_index: int
    sample_id: int
    id: Any
    prompt: str
    label: Any
    predict: str
    reasoning: str | None
    answer: str | None
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    extra: Json = field(default_factory=dict)

    def row(self) -> Json:
        """The row as written: field order is part of the format, `id` only where the record has one."""
        row: Json = {"original_index": self.original_index, "sample_id": self.sample_id}
        if self.id is not None:
            row["id"] = self.id
        row |= {
            "prompt": self.prompt,
            "label": self.label,
            "predict": self.predict,
            "reasoning": self.reasoning,
            "answer": self.answer,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return row | {name: value for name, value in self.extra.items() if name not in row}


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """A sample that could not be made: a row of errors.jsonl."""

    original_index: int
    sample_id: int
    error: str
    message: str

    def row(self) -> Json:
        return {
            "original_index": self.original_index,
            "sample_id": self.sample_id,
            "error": self.error,
            "message": self.message,
        }


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FilePart(_File):
    """A range of one input file, made of whole records. `first_line` is the 1-based number of its first line or row.

    `start` and `end` are bytes; of a compressed file, decompressed bytes; of a Parquet file, rows.
    """

    path: str
    start: int
    end: int
    first_line: int = 1


class Shard(_File):
    """A contiguous range of `records` records from `start` (an original_index) on, as ranges of the input.

    `sha256` is the hash of the records' bytes, in order (of Parquet and CSV: of their fields): what the shard's
    results depend on besides the settings. Of Parquet files only `columns` are read; None: all.
    """

    index: int
    start: int
    records: int
    sha256: str
    parts: tuple[FilePart, ...]
    columns: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """`00012`: the stem of the shard's files."""
        return f"{self.index:05d}"


class ShardPlan(_File):
    """How many records a shard has: in each of `steps`, from a `start` (an original_index) on, a `size`.

    It was made for `records` records; of them the last shard may not be full.
    """

    records: int
    steps: tuple[tuple[int, int], ...]

    def size_at(self, start: int) -> int:
        """Records of the shard that begins with this record."""
        return next(size for begin, size in reversed(self.steps) if begin <= start)

    @property
    def last_size(self) -> int:
        return self.steps[-1][1]

    @property
    def whole_until(self) -> int:
        """Where its last full shard ends."""
        start, size = next(step for step in reversed(self.steps) if step[0] <= self.records)
        return start + (self.records - start) // size * size


class DatasetManifest(_File):
    """What split_dataset found: `sha256` is the hash of all input bytes, in the order of `files`.

    With `dataset.limit`, `bytes` and `sha256` stop where the last used record ends.
    """

    files: tuple[str, ...]
    bytes: int
    records: int
    blank_lines: int
    sha256: str
    plan: ShardPlan
    shards: tuple[Shard, ...]


class ModelManifest(_File):
    """A model that is there: `path` is its local folder, `identity` the hash of its files, `revision` its commit."""

    source: str
    path: str
    identity: str
    revision: str | None = None


class FileManifest(_File):
    """A finished file, by name relative to the manifest's folder."""

    name: str
    bytes: int
    sha256: str
    rows: int


class Tally(BaseModel):
    """Counts over samples that add up: of a shard, or of a run.

    `graded` samples have a label, `correct` of them match it; `format_errors` break `validation.answer_format`.
    `records_graded` records have a label; `pass_at[k]` is the sum of their pass@k, `majority_correct` counts those
    whose commonest answer is right. A graded record's errors count as wrong in both. The lengths are histograms:
    samples by the lower edge of their bin (`length_bin`).
    """

    model_config = ConfigDict(extra="forbid")

    samples: int = 0
    errors: int = 0
    errors_by_kind: dict[str, int] = Field(default_factory=dict)
    finish_reasons: dict[str, int] = Field(default_factory=dict)
    empty: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prompt_lengths: dict[int, int] = Field(default_factory=dict)
    completion_lengths: dict[int, int] = Field(default_factory=dict)
    format_errors: int = 0
    graded: int = 0
    correct: int = 0
    records_graded: int = 0
    pass_at: dict[int, float] = Field(default_factory=dict)
    majority_correct: int = 0

    @property
    def truncated(self) -> int:
        """Samples that were cut at `max_tokens` or the context's end."""
        return self.finish_reasons.get("length", 0)

    def add_row(self, row: Json, cached_tokens: int = 0) -> None:
        """Count one row, of data.jsonl or errors.jsonl; tasks.tally adds what a row alone does not tell."""
        if "error" in row and "predict" not in row:
            self.errors += 1
            _bump(self.errors_by_kind, row["error"])
            return
        self.samples += 1
        _bump(self.finish_reasons, row["finish_reason"])
        self.empty += not row["predict"].strip()
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        self.cached_tokens += cached_tokens
        _bump(self.prompt_lengths, length_bin(row["prompt_tokens"]))
        _bump(self.completion_lengths, length_bin(row["completion_tokens"]))

    def add(self, other: Tally) -> None:
        """Add another tally's counts to this one's."""
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if not isinstance(mine, dict):
                setattr(self, name, mine + theirs)
                continue
            for key, count in theirs.items():
                _bump(mine, key, count)


def length_bin(tokens: int) -> int:
    """The lower edge of a length's bin: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24 … (two bins a power of two)."""
    if tokens < 4:
        return tokens
    power: int = 1 << (tokens.bit_length() - 1)
    return power + power // 2 if tokens >= power + power // 2 else power


def _bump(counts: dict[Any, Any], key: Any, by: float = 1) -> None:
    counts[key] = counts.get(key, 0) + by


class Span(_File):
    """`completion_tokens` of finished samples that an engine made in `seconds` from `start` (Unix time) on."""

    engine: str
    start: float
    seconds: float
    completion_tokens: int


class ShardManifest(_File):
    """What a finished shard holds. The shard is believed only while both files have these sizes and hashes.

    `grading` says which validation settings the answers and the tally are by (tasks.tally.grading_key), `timeline` when
    its tokens were made. `etags` are those that S3 gave the files, by their names: a file that still has its ETag is
    the one that was written, and needs not be read to know it.
    """

    version: int = 1
    key: str
    index: int
    start: int
    records: int
    n: int
    sha256: str
    data: FileManifest
    errors: FileManifest
    tally: Tally
    resumed_samples: int = 0
    engine: str = ""
    started_at: float = 0.0
    seconds: float = 0.0
    grading: str = ""
    timeline: tuple[Span, ...] = ()
    etags: dict[str, str] = Field(default_factory=dict)
