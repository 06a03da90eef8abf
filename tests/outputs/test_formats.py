"""The merged files in each format, on a disk and on S3."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import s3fs
import zstandard

from tasks.config import ValidationConfig
from tasks.errors import RunError
from tasks.merge_shards import MergedFiles, merge
from tasks.outputs import table
from tasks.outputs.formats import SUFFIXES, first_rows
from tasks.records import DatasetManifest, Json, ShardManifest
from tasks.storage import Storage, open_storage, sha256_of
from tasks.validate_output import validate
from tests.seaweed import Seaweed
from tests.shards import KEY, dataset_of, finish_all, sample_row

VALIDATION = ValidationConfig(max_error_rate=1.0)
FOLDER = f"shards/{KEY}"
ASKED = {".jsonl": ("jsonl", None), ".jsonl.zst": ("jsonl", "zst"), ".parquet": ("parquet", None)}


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        yield open_storage(str(tmp_path))
        return
    seaweed: Seaweed = request.getfixturevalue("seaweed")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield open_storage(f"s3://{seaweed.bucket('outputs')}/{tmp_path.name}/{request.node.name.split('[')[0]}")


@pytest.fixture
def dataset() -> DatasetManifest:
    return dataset_of(100, 16)


@pytest.fixture
def shards(storage: Storage, dataset: DatasetManifest) -> list[ShardManifest]:
    return finish_all(storage, dataset, 2, VALIDATION, varied_row)


def varied_row(index: int, sample: int) -> Json:
    """Labels that are numbers here and words there, lists and objects among the kept fields."""
    row = sample_row(index, sample)
    if "predict" not in row:
        return row
    row["label"] = index if index % 2 else f"word {index}"
    return row | {"tags": [f"t{n}" for n in range(index % 3)], "meta": {"level": index % 5, "from": None}}


def merged_as(suffix: str, storage: Storage, shards: list[ShardManifest]) -> MergedFiles:
    return merge(storage, FOLDER, shards, *ASKED[suffix])


def rows_of(storage: Storage, name: str) -> list[Any]:
    content = storage.read(name)
    if name.endswith(".parquet"):
        return list(pq.read_table(io.BytesIO(content)).to_pylist())
    if name.endswith(".zst"):
        content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content)).read()
    return [orjson.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_the_same_rows_and_is_proven_whole(
    storage: Storage, dataset: DatasetManifest, shards: list[ShardManifest], suffix: str
) -> None:
    merged = merged_as(suffix, storage, shards)
    expected = [varied_row(index, sample) for index in range(100) for sample in range(2)]
    data, errors = rows_of(storage, merged.data.name), rows_of(storage, merged.errors.name)
    if suffix == ".parquet":
        data = [row | {"label": orjson.loads(row["label"])} for row in data]
        assert pq.read_schema(io.BytesIO(storage.read(merged.data.name))).field("completion_tokens").type == "int64"
    assert data == [row for row in expected if "predict" in row]
    assert errors == [row for row in expected if "error" in row]
    for file in (merged.data, merged.errors):
        assert file.name.endswith(suffix)
        assert (storage.size(file.name), sha256_of(storage, file.name)) == (file.bytes, file.sha256)
    assert validate(storage, dataset, shards, merged, KEY, 2, VALIDATION).passed
    assert [row["predict"] for row in first_rows(storage, merged.data.name, 3)] == [r["predict"] for r in expected[:3]]


def test_another_format_replaces_the_one_before(storage: Storage, shards: list[ShardManifest]) -> None:
    for suffix in (*SUFFIXES, ".jsonl"):
        merged_as(suffix, storage, shards)
        assert storage.names("") == [f"data{suffix}", f"errors{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_shard_leaves_the_file_that_was_there(
    storage: Storage, shards: list[ShardManifest], suffix: str
) -> None:
    merged_as(suffix, storage, shards)
    before = storage.read(f"data{suffix}")
    name = f"{FOLDER}/{shards[3].data.name}"
    content = storage.read(name)
    with storage.writer(name) as file:
        file.write(content.replace(b"so <answer>", b"So <answer>", 1))
    with pytest.raises(RunError, match=f"{shards[3].data.name} was changed after it was finished"):
        merged_as(suffix, storage, shards)
    storage.remove(name)
    with pytest.raises(RunError, match=f"{shards[3].data.name} is gone"):
        merged_as(suffix, storage, shards)
    assert storage.read(f"data{suffix}") == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_rows_are_an_empty_file_of_the_format(tmp_path: Path, suffix: str) -> None:
    storage, dataset = open_storage(str(tmp_path)), dataset_of(4, 4)
    shards = finish_all(storage, dataset, 1, VALIDATION)
    merged = merged_as(suffix, storage, shards)
    assert merged.errors.rows == 0
    assert rows_of(storage, merged.errors.name) == []
    assert validate(storage, dataset, shards, merged, KEY, 1, VALIDATION).passed


def test_row_groups_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(table, "ROW_GROUP_BYTES", 40_000)
    storage = open_storage(str(tmp_path))
    shards = finish_all(storage, dataset_of(2000, 1000), 1, VALIDATION)
    merged_as(".parquet", storage, shards)
    groups = pq.ParquetFile(tmp_path / "data.parquet").metadata
    sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert sum(sizes) == 1960
    assert len(sizes) > 3
    assert max(sizes) < 2 * sizes[0]


@pytest.mark.parametrize(("compression", "codec"), [(None, "SNAPPY"), ("zst", "ZSTD")])
def test_compression_is_parquets_codec(tmp_path: Path, compression: str | None, codec: str) -> None:
    storage = open_storage(str(tmp_path))
    shards = finish_all(storage, dataset_of(8, 4), 1, VALIDATION)
    merge(storage, FOLDER, shards, "parquet", compression)
    assert pq.ParquetFile(tmp_path / "data.parquet").metadata.row_group(0).column(0).compression == codec


def test_a_number_too_large_for_its_column_turns_the_column_to_text(tmp_path: Path) -> None:
    def row(index: int, sample: int) -> Json:
        return sample_row(index, sample) | {"number": 2**60 + 1 if index == 7 else 0.5}

    storage = open_storage(str(tmp_path))
    shards = finish_all(storage, dataset_of(8, 4), 1, VALIDATION, row)
    merged_as(".parquet", storage, shards)
    assert [orjson.loads(row["number"]) for row in rows_of(storage, "data.parquet")] == [0.5] * 7 + [2**60 + 1]
