"""Files of a run in a bucket of a real S3 server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
from aiobotocore.client import AioBaseClient

from tasks.config import ValidationConfig
from tasks.merge_shards import merge
from tasks.records import Json
from tasks.s3_storage import S3Storage
from tasks.s3_upload import SMALLEST_COPY, SMALLEST_PART, S3Upload
from tasks.shard_store import ShardStore
from tasks.storage import open_storage, sha256_of, write
from tests.seaweed import Seaweed, SeaweedServer, seaweed
from tests.shards import KEY, dataset_of, finish_all, sample_row

__all__ = ["seaweed"]

MB = 1 << 20


def use(server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def storage(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Storage:
    use(seaweed, monkeypatch)
    found = open_storage(f"s3://{seaweed.bucket('storage')}/{tmp_path.name}/")
    assert isinstance(found, S3Storage)
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The requests made, and the bytes sent with each."""
    made: list[tuple[str, Any]] = []
    call = AioBaseClient._make_api_call

    async def count(self: Any, operation: str, fields: Any) -> Any:
        made.append((operation, len(fields.get("Body") or b"")))
        return await call(self, operation, fields)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", count)
    return made


def test_files_are_written_read_listed_and_removed(storage: S3Storage) -> None:
    write(storage, "a/b.txt", b"content")
    write(storage, "a/c/d.txt", b"")
    assert storage.read("a/b.txt") == b"content"
    assert (storage.size("a/b.txt"), storage.size("a/c/d.txt"), storage.size("a/none")) == (7, 0, None)
    assert (storage.names("a"), storage.names("none"), storage.names("")) == (["b.txt"], [], [])
    with storage.open("a/b.txt") as file:
        assert (file.read(3), file.read()) == (b"con", b"tent")
    with pytest.raises(FileNotFoundError):
        storage.read("none")
    with pytest.raises(FileNotFoundError), storage.open("none"):
        pass
    storage.remove("a")
    storage.remove("none")
    assert storage.size("a/b.txt") is None


def test_a_file_appears_when_it_is_whole_and_not_at_all_otherwise(storage: S3Storage) -> None:
    block = os.urandom(7 * MB)
    with storage.writer("large") as file:
        for _ in range(5):
            file.write(block)
        assert storage.size("large") is None
    assert storage.read("large") == block * 5
    with pytest.raises(ZeroDivisionError), storage.writer("half") as file:
        file.writelines(block[: len(block) // left] for left in (1, 1, 1, 1, 0))
    assert storage.size("half") is None
    assert not uploads(storage)


def test_what_a_killed_run_left_half_sent_is_dropped(storage: S3Storage) -> None:
    for name in ("data.jsonl", "another run/data.jsonl"):
        S3Upload(storage._fs, storage.bucket, storage.key(name)).write(os.urandom(20 * MB))
    storage.drop_unfinished_uploads()
    assert uploads(storage) == [storage.key("another run/data.jsonl")]


@pytest.mark.parametrize("before", [0, 1000, 20 * MB])
def test_large_objects_are_put_together_by_s3(storage: S3Storage, calls: list[tuple[str, int]], before: int) -> None:
    head, large, tail = os.urandom(before), os.urandom(SMALLEST_COPY + 12345), b"tail"
    write(storage, "large", large)
    assert not storage.append(None, "large", len(large))  # type: ignore[arg-type]
    calls.clear()
    with storage.writer("whole") as file:
        file.write(head)
        for _ in range(2):
            assert storage.append(file, "large", len(large))
        assert not storage.append(file, "large", len(large) + 1)
        file.write(tail)
        assert file.tell() == before + 2 * len(large) + 4
    sent = sum(size for _, size in calls)
    assert storage.read("whole") == head + large * 2 + tail
    assert sent <= before + SMALLEST_PART + 4
    assert sum(method == "UploadPartCopy" for method, _ in calls) == 2


def test_many_small_copies_leave_parts_for_the_rest(storage: S3Storage) -> None:
    """Of 10,000 parts at most: one for each object of 16 MiB would hold 160 GB only."""
    upload = S3Upload(storage._fs, storage.bucket, storage.key("whole"))
    sizes = []
    for parts in (0, 1500, 3000, 4500, 9000):
        upload._parts = [""] * parts
        sizes.append(upload.smallest_copy >> 20)
    assert sizes == [16, 16, 32, 64, 512]


def test_an_object_that_was_replaced_is_not_copied(storage: S3Storage) -> None:
    write(storage, "large", os.urandom(SMALLEST_COPY))
    upload = S3Upload(storage._fs, storage.bucket, storage.key("whole"))
    upload.append(storage.key("large"), SMALLEST_COPY, '"00"')
    with pytest.raises(OSError, match="pre-conditions"):
        upload.commit()
    upload.discard()
    assert storage.size("whole") is None


def test_merging_sends_no_large_shard_again(storage: S3Storage, calls: list[tuple[str, int]], tmp_path: Path) -> None:
    text = os.urandom(MB * 11 // 20).hex()

    def row(index: int, sample: int) -> Json:
        large = index < 48
        return sample_row(index, sample) | ({"predict": f"{index} {text}"} if large else {})

    dataset = dataset_of(49, 16)
    shards = finish_all(storage, dataset, 1, ValidationConfig(), row)
    assert [shard.data.bytes > SMALLEST_COPY for shard in shards] == [True, True, True, False]
    calls.clear()
    merged = merge(storage, f"shards/{KEY}", shards)
    assert merged.data.sha256 == sha256_of(storage, "data.jsonl")
    local = open_storage(str(tmp_path))
    assert merge(local, f"shards/{KEY}", finish_all(local, dataset, 1, ValidationConfig(), row)) == merged
    assert sum(size for _, size in calls) < 10 * MB
    assert sum(method == "UploadPartCopy" for method, _ in calls) == 3


def test_a_finished_shard_is_known_by_its_etags_and_an_edited_one_by_its_hash(
    storage: S3Storage, calls: list[tuple[str, int]]
) -> None:
    (shard,) = finish_all(storage, dataset_of(16, 16), 1, ValidationConfig())
    store = ShardStore(storage, KEY)
    calls.clear()
    assert store.damage(shard) is None
    assert {operation for operation, _ in calls} == {"HeadObject"}
    name = f"{store.folder}/{shard.data.name}"
    content = storage.read(name)
    write(storage, name, content.replace(b"answer", b"Answer", 1))
    assert store.damage(shard) == f"{name} was changed after it was finished"
    write(storage, name, content)
    assert store.damage(shard.model_copy(update={"etags": {shard.data.name: "none"}})) is None
    storage.remove(name)
    assert store.damage(shard) == f"{name} is gone"


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    with SeaweedServer() as server:
        use(server.access, monkeypatch)
        yield server


def test_a_server_that_is_killed_and_started_again_is_waited_for(own_server: SeaweedServer) -> None:
    storage = open_storage(f"s3://{own_server.access.bucket('restart')}/run")
    block = os.urandom(9 * MB)
    write(storage, "before", block * 4)
    written, read = [], []

    def work() -> None:
        with storage.open("before") as source, storage.writer("copy") as target:
            while content := source.read(MB):
                written.append(target.write(content))
                half.set()
                if len(written) == 12:
                    killed.wait()
        read.append(storage.read("copy"))

    half, killed = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    half.wait()
    own_server.kill()
    killed.set()
    own_server.start()
    thread.join(120)
    assert read == [block * 4]
    assert storage.names("") == ["before", "copy"]


def uploads(storage: S3Storage) -> list[str]:
    """The keys of uploads that are neither done nor given up."""
    found = storage._fs.call_s3("list_multipart_uploads", Bucket=storage.bucket).get("Uploads", ())
    return [upload["Key"] for upload in found]
