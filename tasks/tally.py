"""Counting and grading rows: where they are in memory (a shard's end), or again from the shard's files.

A finished shard is paid for. When only the validation settings change, its rows are graded again and its answers
rewritten; nothing is generated.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import IO

import orjson

from tasks.answers import answer_matches, answer_ok, extract_answer, graded_text, majority, pass_at_k
from tasks.config import ValidationConfig
from tasks.records import FileManifest, Json, ShardManifest, Tally
from tasks.storage import Storage

EVERY_K = 32
"""Samples a record up to which pass@k is given for every k."""

_VERSION = 3
_GRADING_FIELDS = {"answer_format", "answer_pattern", "answer_schema", "label_match"}


def grading_key(validation: ValidationConfig) -> str:
    """Short hash of the settings that rows are graded by; thresholds do not enter it."""
    settings = [_VERSION, validation.model_dump(include=_GRADING_FIELDS)]
    return hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]


def tally_rows(rows: Iterable[Json], errors: Iterable[Json], validation: ValidationConfig) -> Tally:
    """Count and grade samples and error rows, each ordered by (original_index, sample_id).

    Holds one record's rows at a time. The rows' answers are taken as they are; cached tokens are not in a row and stay
    0. Raises ValueError where rows are out of order or one is there twice.
    """
    tally = Tally()
    for _, record in groupby(_in_order(rows, errors), key=lambda row: row["original_index"]):
        grade_record(tally, list(record), validation)
    return tally


def grade_record(tally: Tally, rows: list[Json], validation: ValidationConfig) -> None:
    """Add one record's rows, samples and errors, to a tally."""
    for row in rows:
        tally.add_row(row)
    samples = [row for row in rows if "predict" in row]
    tally.format_errors += sum(not answer_ok(row["answer"], validation) for row in samples)
    if validation.label_match == "none":
        return
    texts = [graded_text(row, validation) for row in samples]
    grades = [answer_matches(text, row["label"], validation) for text, row in zip(texts, samples, strict=True)]
    graded = [grade for grade in grades if grade is not None]
    if graded:
        _add_grades(tally, graded, len(rows))
        label = samples[0]["label"]
        tally.majority_correct += bool(answer_matches(majority(texts, validation), label, validation))


def metrics(tally: Tally) -> dict[str, float]:
    """Shares of what is right: `accuracy` of the graded samples; of the records with a label `pass@1` … `pass@n`, and
    `majority_accuracy` where they have several samples. Empty where nothing is graded."""
    if not tally.graded or not tally.records_graded:
        return {}
    shares = {"accuracy": tally.correct / tally.graded}
    shares |= {f"pass@{k}": total / tally.records_graded for k, total in sorted(tally.pass_at.items())}
    if len(tally.pass_at) > 1:
        shares["majority_accuracy"] = tally.majority_correct / tally.records_graded
    return shares


def tally_file(storage: Storage, folder: str, manifest: ShardManifest, validation: ValidationConfig) -> Tally:
    """Count and grade a finished shard's files again, in constant memory."""
    with (
        storage.open(f"{folder}/{manifest.data.name}") as data,
        storage.open(f"{folder}/{manifest.errors.name}") as errors,
    ):
        tally = tally_rows(_rows(data), _rows(errors), validation)
    tally.cached_tokens = manifest.tally.cached_tokens
    return tally


def regrade(storage: Storage, folder: str, manifest: ShardManifest, validation: ValidationConfig) -> ShardManifest:
    """The shard by other grading settings: answers extracted again, everything else in a row as it was.

    Where an answer changed, the rows go to a file of another name, so that the old manifest stays true until the caller
    writes the new one (returned here) over it; the old file may be removed after that.
    """
    grading = grading_key(validation)
    if manifest.grading == grading:
        return manifest
    stem = manifest.data.name.split(".")[0]
    names = (f"{stem}.{grading}.jsonl", f"{stem}.jsonl")  # by whichever settings, one of them is not the old file's
    name = next(name for name in names if name != manifest.data.name)
    data = _rewrite(storage, folder, manifest.data, name, validation)
    moved = manifest.model_copy(update={"data": data, "grading": grading})
    return moved.model_copy(update={"tally": tally_file(storage, folder, moved, validation)})


def _add_grades(tally: Tally, grades: list[bool], n: int) -> None:
    correct = sum(grades)
    tally.graded += len(grades)
    tally.correct += correct
    tally.records_graded += 1
    for k in _ks(n):
        tally.pass_at[k] = tally.pass_at.get(k, 0.0) + pass_at_k(n, correct, k)


def _ks(n: int) -> list[int]:
    """1 to n; of a large n 1, 2, 4, 8 … and n itself."""
    if n <= EVERY_K:
        return list(range(1, n + 1))
    powers = [1 << power for power in range(n.bit_length())]
    return powers if powers[-1] == n else [*powers, n]


def _in_order(rows: Iterable[Json], errors: Iterable[Json]) -> Iterator[Json]:
    last = (-1, -1)
    for row in heapq.merge(rows, errors, key=_place):
        place = _place(row)
        if place <= last:
            raise ValueError(f"sample {place} comes after sample {last}: rows must be in order, each of them once")
        last = place
        yield row


def _place(row: Json) -> tuple[int, int]:
    return row["original_index"], row["sample_id"]


def _rows(file: IO[bytes]) -> Iterator[Json]:
    return (orjson.loads(line) for line in file)


def _rewrite(storage: Storage, folder: str, old: FileManifest, name: str, validation: ValidationConfig) -> FileManifest:
    digest, size, changed = hashlib.sha256(), 0, False
    with storage.open(f"{folder}/{old.name}") as source, storage.writer(f"{folder}/{name}") as target:
        for line in source:
            new = _with_answer(line, validation)
            changed |= new is not line
            digest.update(new)
            size += target.write(new)
    if not changed:
        storage.remove(f"{folder}/{name}")
        return old
    return FileManifest(name=name, bytes=size, sha256=digest.hexdigest(), rows=old.rows)


def _with_answer(line: bytes, validation: ValidationConfig) -> bytes:
    row = orjson.loads(line)
    answer = extract_answer(row["predict"], validation, row["finish_reason"])
    if answer == row["answer"]:
        return line
    row["answer"] = answer
    return orjson.dumps(row) + b"\n"
