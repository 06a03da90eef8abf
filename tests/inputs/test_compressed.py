"""Compressed JSONL: read forwards, once."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from tasks.dataset import read_shard, verify_shard
from tasks.errors import RunError
from tasks.inputs import compressed
from tests.inputs.tables import fields_of, split_path, texts, write_table

PACK = {".gz": gzip.compress, ".zst": zstandard.compress}
both = pytest.mark.parametrize("suffix", [".gz", ".zst"])


@both
def test_shards_have_the_hashes_of_the_uncompressed_file(tmp_path: Path, suffix: str) -> None:
    plain = split_path(write_table(tmp_path / "data.jsonl", texts(50)), 20)
    packed = split_path(write_table(tmp_path / f"data.jsonl{suffix}", texts(50)), 20)
    assert [shard.sha256 for shard in packed.shards] == [shard.sha256 for shard in plain.shards]


@both
def test_members_and_frames_that_follow_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b'\xef\xbb\xbf{"prompt":"a"}\n{"pro') + PACK[suffix](b'mpt":"b"}\n'))
    assert fields_of(split_path(path, 1)) == [{"prompt": "a"}, {"prompt": "b"}]


@both
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"data.jsonl{suffix}", texts(500))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"dataset\.path: .* is damaged or cut short"):
        split_path(path)
    path.write_bytes(b'{"prompt":"not compressed"}\n')
    with pytest.raises(RunError, match="is damaged or cut short"):
        split_path(path)


@both
def test_an_engine_reads_the_file_once_to_verify_and_once_to_read(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = split_path(write_table(tmp_path / f"data.jsonl{suffix}", texts(1000)), 10).shards
    opened = []
    original = compressed.open_input
    monkeypatch.setattr(compressed, "open_input", lambda path: opened.append(path) or original(path))
    for shard in shards[::3]:
        verify_shard(shard)
        assert sum(1 for _ in read_shard(shard)) == 10
    assert len(opened) == 2


@both
def test_large_files_are_estimated(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.split_dataset.EXACT_BYTES", 0)
    assert split_path(write_table(tmp_path / f"data.jsonl{suffix}", texts(6000))).plan.last_size == 32
