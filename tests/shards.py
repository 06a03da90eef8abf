"""Finished shards for tests: real files as the engines write them, made without an engine."""

from __future__ import annotations

from collections.abc import Callable

from tasks.config import ValidationConfig
from tasks.records import DatasetManifest, ErrorRow, Json, Sample, Shard, ShardManifest, ShardPlan
from tasks.shard_store import Row, ShardStore
from tasks.storage import Storage
from tasks.tally import grading_key, tally_rows

KEY = "k1"

RowMaker = Callable[[int, int], Json]


def sample_row(index: int, sample: int) -> Json:
    """A row that differs with its place; every 50th record is an error."""
    if index % 50 == 49:
        return ErrorRow(index, sample, "image_not_found", f"data.jsonl line {index + 1}: no image {index}.png").row()
    predict = f"so <answer>{(index + sample) % 7}</answer>"
    made = Sample(
        original_index=index,
        sample_id=sample,
        id=f"r{index}",
        prompt=f"question {index}",
        label=str(index % 7),
        predict=predict,
        reasoning=None,
        answer=str((index + sample) % 7),
        finish_reason="length" if index % 10 == 3 else "stop",
        prompt_tokens=5 + index % 30,
        completion_tokens=4 + sample,
    )
    return made.row()


def dataset_of(records: int, shard_size: int) -> DatasetManifest:
    """The manifest of a dataset of so many records."""
    shards = tuple(
        Shard(index=i, start=start, records=min(shard_size, records - start), sha256=f"sha{i}", parts=())
        for i, start in enumerate(range(0, records, shard_size))
    )
    plan = ShardPlan(records=records, steps=((0, shard_size),))
    return DatasetManifest(
        files=("data.jsonl",), bytes=0, records=records, blank_lines=0, sha256="d", plan=plan, shards=shards
    )


def finish_shard(
    storage: Storage, shard: Shard, n: int, validation: ValidationConfig, row: RowMaker = sample_row
) -> ShardManifest:
    """Write a shard's files and manifest."""
    rows = [row(index, s) for index in range(shard.start, shard.start + shard.records) for s in range(n)]
    samples, errors = [r for r in rows if "predict" in r], [r for r in rows if "predict" not in r]
    tally = tally_rows(samples, errors, validation)
    facts: Json = {"n": n, "tally": tally, "grading": grading_key(validation)}
    return ShardStore(storage, KEY).finish(shard, [Row("", r) for r in rows], facts)


def finish_all(
    storage: Storage, dataset: DatasetManifest, n: int, validation: ValidationConfig, row: RowMaker = sample_row
) -> list[ShardManifest]:
    """Write all shards of a dataset."""
    return [finish_shard(storage, shard, n, validation, row) for shard in dataset.shards]
