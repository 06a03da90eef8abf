"""Task split_dataset: the dataset's records as shards, found in one pass without copying a byte."""

from __future__ import annotations

import sys

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.config import DatasetConfig
from tasks.errors import RunError
from tasks.inputs.estimate import estimate_records, file_bytes
from tasks.inputs.formats import scan_file
from tasks.inputs.listing import list_inputs
from tasks.inputs.parquet import Columns, count_rows
from tasks.inputs.plan import one_size, plan_shards
from tasks.inputs.shards import ShardCutter
from tasks.records import DatasetManifest, ShardPlan
from tasks.retries import retried

EXACT_BYTES = 64 << 20


@task(
    name="split_dataset",
    task_run_name="split_dataset",
    tags=["split"],
    description="Cuts the dataset into shards, ranges of its files, and hashes them; copies nothing.",
    cache_policy=NO_CACHE,
    **retried(3, 2.0),
)
def split_dataset(
    dataset: DatasetConfig,
    n: int,
    known: ShardPlan | None = None,
    columns: Columns = None,
    output_path: str | None = None,
) -> DatasetManifest:
    """See `split`."""
    return split(dataset, n, known, columns, output_path)


def split(
    dataset: DatasetConfig,
    n: int,
    known: ShardPlan | None = None,
    columns: Columns = None,
    output_path: str | None = None,
) -> DatasetManifest:
    """The dataset's files, and its records as shards.

    `n` is the samples a record; `known` the plan of an earlier run of the same output and n, whose shards stay what
    they are; `columns` those of Parquet files that the run needs (None: all); `output_path` the run's folder, whose
    results are no input. With `dataset.limit`, bytes and hash cover what was used only. Raises RunError where there is
    no file or no record.
    """
    files = list_inputs(dataset.path, output_path)
    if dataset.shard_size is not None:
        return _split(dataset, files, one_size(dataset.shard_size), columns)
    plan = plan_shards(_expected_records(dataset, files), n, known)
    manifest = _split(dataset, files, plan, columns)
    best = plan_shards(manifest.records, n, known)
    # Where the estimate was far too low: now the number is known.
    return manifest if 2 * plan.last_size >= best.last_size else _split(dataset, files, best, columns)


def _expected_records(dataset: DatasetConfig, files: list[str]) -> int:
    """The exact number where the files tell it or it takes little time to count, else an estimate."""
    tables = [path for path in files if path.endswith(".parquet")]
    texts = [path for path in files if path not in tables]
    sizes = [file_bytes(path) for path in texts]
    records = sum(count_rows(path) for path in tables)
    if sum(sizes) <= EXACT_BYTES:
        records += _cut(texts, ShardCutter(one_size(sys.maxsize).size_at, dataset.limit), None)[0].records
    else:
        records += estimate_records(texts, sizes)
    return records if dataset.limit is None else min(records, dataset.limit)


def _split(dataset: DatasetConfig, files: list[str], plan: ShardPlan, columns: Columns) -> DatasetManifest:
    cutter, blank_lines = _cut(files, ShardCutter(plan.size_at, dataset.limit), columns)
    if not cutter.records:
        raise RunError(f"dataset.path: {dataset.path} holds no records; every line is blank, or there is none")
    tables = any(path.endswith(".parquet") for path in files)
    return DatasetManifest(
        files=tuple(files),
        bytes=cutter.input_bytes,
        records=cutter.records,
        blank_lines=blank_lines,
        sha256=cutter.input_sha256,
        plan=plan.model_copy(update={"records": cutter.records}),
        shards=tuple(shard.model_copy(update={"columns": columns}) if tables else shard for shard in cutter.shards),
    )


def _cut(files: list[str], cutter: ShardCutter, columns: Columns) -> tuple[ShardCutter, int]:
    """The cutter after all files, and the blank lines met."""
    blank_lines = 0
    with cutter:
        for path in files:
            if not cutter.finished:
                blank_lines += scan_file(path, cutter, columns)
    return cutter, blank_lines
