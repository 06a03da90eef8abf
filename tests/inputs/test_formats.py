"""What holds for every format alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tasks.dataset import list_inputs, read_shard, verify_shard
from tasks.errors import InputChanged, RunError
from tests.inputs.tables import SUFFIXES, fields_of, read_all, split_path, texts, write_table

every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def test_the_same_records_are_the_same_in_every_format(tmp_path: Path) -> None:
    rows = texts(1000)
    manifests = [split_path(write_table(tmp_path / f"data{suffix}", rows, row_group_size=70)) for suffix in SUFFIXES]
    for manifest in manifests:
        assert fields_of(manifest) == rows
    boundaries = [[(shard.index, shard.start, shard.records) for shard in manifest.shards] for manifest in manifests]
    assert boundaries == [boundaries[0]] * len(SUFFIXES)
    assert len(boundaries[0]) == 63


@every_format
def test_where_names_the_line_or_row(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"data{suffix}", [{"prompt": "a"}, {"prompt": "b\nb"}, {"prompt": "c"}], 2)
    places = {".parquet": ["row 1", "row 2", "row 3"], ".csv": ["line 2", "line 3", "line 5"]}
    expected = [f"{path} {place}" for place in places.get(suffix, ["line 1", "line 2", "line 3"])]
    for size in (1, 2, 3):
        assert [record.where for record in read_all(split_path(path, size))] == expected


@every_format
def test_the_dataset_hash_is_that_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"data{suffix}", texts(50))
    manifest = split_path(path, 20)
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.bytes == path.stat().st_size


@every_format
@pytest.mark.parametrize("limit", [1, 20, 33, 40])
def test_limit_stops_early(tmp_path: Path, suffix: str, limit: int) -> None:
    write_table(tmp_path / f"a{suffix}", texts(30), 7)
    write_table(tmp_path / f"b{suffix}", texts(30), 7)
    assert fields_of(split_path(tmp_path, 20, limit)) == (texts(30) * 2)[:limit]


@every_format
def test_appending_changes_only_the_last_shard(tmp_path: Path, suffix: str) -> None:
    before = split_path(write_table(tmp_path / f"data{suffix}", texts(50), 7), 20).shards
    after = split_path(write_table(tmp_path / f"data{suffix}", texts(51), 7), 20).shards
    assert [shard.sha256 for shard in after[:2]] == [shard.sha256 for shard in before[:2]]
    assert after[2].sha256 != before[2].sha256


@every_format
def test_shards_may_be_read_in_any_order_and_more_than_once(tmp_path: Path, suffix: str) -> None:
    rows = texts(100)
    shards = split_path(write_table(tmp_path / f"data{suffix}", rows, 33), 10).shards
    for index in (0, 1, 5, 5, 9, 2, 3, 0):
        verify_shard(shards[index])
        found = [record.fields for record in read_shard(shards[index])]
        assert found == rows[10 * index : 10 * index + 10]
    abandoned = read_shard(shards[4])
    assert next(abandoned).fields == rows[40]
    abandoned.close()
    assert [record.fields for record in read_shard(shards[4])] == rows[40:50]


@every_format
def test_a_changed_file_is_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    rows = texts(40)
    shards = split_path(write_table(path, rows, 15), 20).shards
    verify_shard(shards[1])
    rows[30] = rows[30] | {"prompt": "another"}
    write_table(path, rows, 15)
    verify_shard(shards[0])
    with pytest.raises(InputChanged, match=r"data\.\S+ changed while the run was using it; run again"):
        verify_shard(shards[1])
    write_table(path, rows[:25], 15)
    with pytest.raises(InputChanged):
        verify_shard(shards[1])
    with pytest.raises(InputChanged):
        list(read_shard(shards[1]))
    path.write_bytes(b"damaged")
    with pytest.raises(InputChanged):
        verify_shard(shards[1])
    path.unlink()
    with pytest.raises(InputChanged):
        verify_shard(shards[1])


def test_a_folder_may_mix_formats(tmp_path: Path) -> None:
    for number, suffix in enumerate(SUFFIXES):
        write_table(tmp_path / f"{number}{suffix}", texts(10))
    assert [Path(path).name for path in list_inputs(str(tmp_path))] == [f"{n}{s}" for n, s in enumerate(SUFFIXES)]
    manifest = split_path(tmp_path, 16)
    assert fields_of(manifest) == texts(10) * len(SUFFIXES)
    assert [len(shard.parts) for shard in manifest.shards] == [2, 3, 2, 1]


@every_format
def test_a_file_without_records_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"data{suffix}", [{"prompt": "a"}])
    empty = write_table(tmp_path / f"empty{suffix}", []) if suffix != ".csv" else tmp_path / "empty.csv"
    if suffix == ".csv":
        empty.write_text("prompt\n")
    with pytest.raises(RunError, match=r"dataset\.path: .* holds no records"):
        split_path(empty)
    assert len(fields_of(split_path(tmp_path))) == 1
    assert path.exists()
