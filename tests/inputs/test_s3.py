"""Datasets in an S3 bucket, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tasks.dataset import list_inputs, verify_shard
from tasks.errors import InputChanged, RunError
from tests.inputs.tables import SUFFIXES, fields_of, split_path, texts, write_table
from tests.seaweed import Seaweed


@pytest.fixture
def bucket(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket that s3:// finds."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    fs = seaweed.filesystem()
    fsspec.filesystem("s3").clear_instance_cache()
    fs.mkdir("inputs")
    yield "s3://inputs"
    fs.rm("inputs", recursive=True)


def upload(seaweed: Seaweed, path: Path, name: str) -> None:
    seaweed.filesystem().put_file(str(path), f"inputs/{name}")


def test_every_format_as_file_glob_and_folder(seaweed: Seaweed, bucket: str, tmp_path: Path) -> None:
    rows = texts(200)
    for suffix in SUFFIXES:
        upload(seaweed, write_table(tmp_path / f"data{suffix}", rows, 70), f"sets/data{suffix}")
        local, remote = split_path(tmp_path / f"data{suffix}"), split_path(f"{bucket}/sets/data{suffix}")
        assert fields_of(remote) == rows
        assert (remote.sha256, remote.bytes) == (local.sha256, local.bytes)
        assert [shard.sha256 for shard in remote.shards] == [shard.sha256 for shard in local.shards]
    upload(seaweed, tmp_path / "data.csv", "sets/.hidden.csv")
    names = sorted(f"{bucket}/sets/data{suffix}" for suffix in SUFFIXES)
    assert list_inputs(f"{bucket}/sets") == list_inputs(f"{bucket}/sets/") == names
    assert list_inputs(f"{bucket}/*/data.jsonl*") == [name for name in names if ".jsonl" in name]


def test_results_are_no_input(seaweed: Seaweed, bucket: str) -> None:
    fs = seaweed.filesystem()
    for name in ("a.jsonl", "set/train.jsonl"):
        fs.pipe_file(f"inputs/{name}", b'{"prompt": "a"}\n')
    results = ("data.jsonl", "shards/plan-n1.json", "shards/0123456789abcdef/00000.jsonl")
    for folder in ("out", "set"):
        for name in results:
            fs.pipe_file(f"inputs/{folder}/{name}", b"{}\n")
    assert list_inputs(bucket, f"{bucket}/out") == [f"{bucket}/a.jsonl", *list_inputs(f"{bucket}/set")]
    assert list_inputs(f"{bucket}/*/*.jsonl", f"{bucket}/out/") == list_inputs(f"{bucket}/set/*.jsonl")
    assert list_inputs(f"{bucket}/set", f"{bucket}/set") == [f"{bucket}/set/train.jsonl"]
    with pytest.raises(
        RunError, match=r"^output\.path: s3://inputs/set holds the dataset's own file s3://inputs/set/d"
    ):
        list_inputs(f"{bucket}/set/data.jsonl", f"{bucket}/set")


def test_an_object_that_is_replaced_or_removed_is_noticed(seaweed: Seaweed, bucket: str, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        name = f"data{suffix}"
        upload(seaweed, write_table(tmp_path / name, texts(40)), name)
        shard = split_path(f"{bucket}/{name}", 20).shards[0]
        verify_shard(shard)
        upload(seaweed, write_table(tmp_path / name, list(reversed(texts(40)))), name)
        with pytest.raises(InputChanged, match=f"dataset.path: {bucket}/{name} changed while"):
            verify_shard(shard)
        seaweed.filesystem().rm_file(f"inputs/{name}")
        with pytest.raises(InputChanged):
            verify_shard(shard)


@pytest.mark.parametrize("path", ["s3://inputs/missing.jsonl", "s3://inputs/*.jsonl", "s3://no-such-bucket/x.jsonl"])
def test_nothing_there_is_refused(bucket: str, path: str) -> None:
    with pytest.raises(RunError, match=r"dataset\.path: s3://.*no such file or folder"):
        list_inputs(path)


def test_wrong_keys_are_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(RunError, match=r"dataset\.path: the credentials are refused for s3://inputs/data\.jsonl"):
        list_inputs("s3://inputs/data.jsonl")
