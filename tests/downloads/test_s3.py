"""Models on a real S3 server."""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tasks.config import ModelConfig
from tasks.download_model import fetch_model
from tasks.downloads import s3
from tasks.errors import RunError
from tests.downloads.running import start
from tests.downloads.test_hub import content, flip
from tests.downloads.test_selection import NEEDED
from tests.hub import noise, tiny_model
from tests.seaweed import Seaweed

WEIGHTS = "model-00001-of-00002.safetensors"
MODEL = tiny_model(300_000)


@pytest.fixture(autouse=True)
def access(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def fs(seaweed: Seaweed) -> Any:
    return seaweed.filesystem()


@pytest.fixture
def folder(seaweed: Seaweed, fs: Any) -> str:
    """`bucket/prefix` with a model in it."""
    path = f"{seaweed.bucket('models')}/{uuid.uuid4().hex[:8]}/tiny"
    for name, data in MODEL.files.items():
        fs.pipe_file(f"{path}/{name}", data)
    return path


@pytest.fixture
def config(folder: str, cache: Path) -> Callable[..., ModelConfig]:
    def make(**fields: object) -> ModelConfig:
        return ModelConfig.model_validate({"source": f"s3://{folder}/", "cache_dir": str(cache)} | fields)

    return make


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the objects that are fetched, one for each time."""
    names: list[str] = []
    fetch = s3._Mirror._fetch

    def count(self: s3._Mirror, item: Any, *rest: Any) -> None:
        names.append(item.name)
        fetch(self, item, *rest)

    monkeypatch.setattr(s3._Mirror, "_fetch", count)
    return names


def mirrored(path: str) -> dict[str, bytes]:
    return {name: data for name, data in content(path).items() if name != ".mirror.json"}


Config = Callable[..., ModelConfig]


def test_mirrors_the_needed_files(config: Config, cache: Path) -> None:
    manifest = fetch_model(config())
    assert mirrored(manifest.path) == {name: MODEL.files[name] for name in NEEDED}
    assert Path(manifest.path).parent == cache


def test_the_identity_is_that_of_the_same_local_folder(config: Config, tmp_path: Path) -> None:
    local = tmp_path / "copy"
    local.mkdir()
    for name in NEEDED:
        (local / name).write_bytes(MODEL.files[name])
    assert fetch_model(config()).identity == fetch_model(ModelConfig(source=str(local))).identity


def test_a_present_model_is_not_fetched_again(config: Config, fetched: list[str]) -> None:
    first = fetch_model(config())
    assert sorted(fetched) == NEEDED
    fetched.clear()
    assert fetch_model(config()) == first
    assert fetched == []


def test_only_what_changed_is_fetched_and_what_is_gone_removed(
    config: Config, fs: Any, folder: str, fetched: list[str]
) -> None:
    first = fetch_model(config())
    fetched.clear()
    fs.pipe_file(f"{folder}/config.json", b'{"changed": true}')
    fs.rm(f"{folder}/chat_template.jinja")
    second = fetch_model(config())
    assert fetched == ["config.json"]
    assert second.path == first.path
    assert second.identity != first.identity
    assert not Path(second.path, "chat_template.jinja").exists()


def test_a_byte_flipped_on_the_disk_is_found(config: Config, fetched: list[str]) -> None:
    path = fetch_model(config()).path
    fetched.clear()
    flip(Path(path, WEIGHTS))
    assert mirrored(fetch_model(config()).path)[WEIGHTS] == MODEL.files[WEIGHTS]
    assert fetched == [WEIGHTS]


def test_a_byte_flipped_on_the_way_is_found(
    config: Config, fetched: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damage_once(monkeypatch, WEIGHTS)
    with caplog.at_level(logging.INFO, "datagen"):
        assert mirrored(fetch_model(config()).path)[WEIGHTS] == MODEL.files[WEIGHTS]
    assert fetched.count(WEIGHTS) == 2
    assert f"{WEIGHTS} came damaged" in caplog.text


def test_large_objects_come_in_ranges_and_parts_are_verified(
    config: Config, fs: Any, folder: str, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = upload_in_parts(fs, f"{folder}/{WEIGHTS}", [noise(5 << 20, 1), noise(5 << 20, 2), noise(123_456, 3)])
    assert fs.info(f"{folder}/{WEIGHTS}")["ETag"].strip('"').endswith("-3")
    monkeypatch.setattr(s3, "_RANGE_BYTES", 1 << 20)
    damage_once(monkeypatch, WEIGHTS)
    assert Path(fetch_model(config()).path, WEIGHTS).read_bytes() == data
    assert fetched.count(WEIGHTS) == 2


def test_a_sha256_that_s3_has_is_checked(
    config: Config, fs: Any, folder: str, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, key = f"{folder}/{WEIGHTS}".split("/", 1)
    fs.call_s3("put_object", Bucket=bucket, Key=key, Body=MODEL.files[WEIGHTS], ChecksumAlgorithm="SHA256")
    assert fs.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED").get("ChecksumSHA256")
    monkeypatch.setattr(s3._Mirror, "_has_etag", None)
    for name in NEEDED:
        if name != WEIGHTS:
            fs.call_s3("put_object", Bucket=bucket, Key=f"{folder}/{name}".split("/", 1)[1], Body=MODEL.files[name],
                       ChecksumAlgorithm="SHA256")  # fmt: skip
    damage_once(monkeypatch, WEIGHTS)
    assert hashlib.sha256(Path(fetch_model(config()).path, WEIGHTS).read_bytes()).hexdigest() == MODEL.oids[WEIGHTS]
    assert fetched.count(WEIGHTS) == 2


def test_two_runs_at_once_download_once(config: Config) -> None:
    runs = [start(config()) for _ in range(2)]
    logs = [run.communicate(timeout=120) for run in runs]
    assert logs[0][0] == logs[1][0] != ""
    assert sum("datagen:downloaded s3://" in log for _, log in logs) == 1
    assert all("SKTESTSECRET" not in log + path for path, log in logs)


def test_a_kill_leaves_no_half_file(config: Config, folder: str, fs: Any, cache: Path) -> None:
    fs.pipe_file(f"{folder}/{WEIGHTS}", noise(60_000_000, 8))
    process = start(config())
    while not list(cache.rglob("*.part")):
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert not list(cache.rglob(WEIGHTS))
    path = fetch_model(config()).path
    assert Path(path, WEIGHTS).read_bytes() == noise(60_000_000, 8)
    assert not list(cache.rglob("*.part"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the credentials are refused for s3://"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "the credentials are refused for s3://"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "needs credentials, and there are none: set AWS_"),
        ({"AWS_PROFILE": "nobody"}, "needs credentials, and there are none: set AWS_"),
    ],
)
def test_wrong_credentials_are_told_in_one_line(
    config: Config, environment: dict[str, str | None], message: str, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=f"model.source: .*{message}") as error:
        fetch_model(config())
    assert "\n" not in str(error.value)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://there-is-none/model/", "there is no bucket 'there-is-none'"),
        ("s3://models/nothing/here", "s3://models/nothing/here has no files"),
        ("s3://", "'' is no name of a bucket"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_places_are_told_in_one_line(config: Config, source: str, message: str) -> None:
    with pytest.raises(RunError, match=f"model.source: .*{message}") as error:
        fetch_model(config(source=source))
    assert "\n" not in str(error.value)


def test_an_incomplete_model_is_named(config: Config, fs: Any, folder: str) -> None:
    fs.rm(f"{folder}/{WEIGHTS}")
    with pytest.raises(RunError, match=f"is incomplete: {WEIGHTS}, named in model.safetensors.index.json"):
        fetch_model(config())


def damage_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Flip a byte of the object the first time that it is read."""
    cat, lock, left = s3fs.S3FileSystem.cat_file, threading.Lock(), [1]

    def damaged(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        data: bytes = cat(self, path, *args, **kwargs)
        with lock:
            if path.endswith(name) and left and left.pop():
                return bytes([data[0] ^ 1]) + data[1:]
        return data

    monkeypatch.setattr(s3fs.S3FileSystem, "cat_file", damaged)


def upload_in_parts(fs: Any, path: str, parts: list[bytes]) -> bytes:
    bucket, key = path.split("/", 1)
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    done = []
    for number, part in enumerate(parts, 1):
        answer = fs.call_s3("upload_part", **where, PartNumber=number, Body=part)
        done.append({"PartNumber": number, "ETag": answer["ETag"]})
    fs.call_s3("complete_multipart_upload", **where, MultipartUpload={"Parts": done})
    return b"".join(parts)
