"""What stands in the way of a run is told before it starts, in one line that names the field."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fsspec
import pytest
import s3fs
from pydantic import ValidationError

from flows.command_line import wrong_fields
from tasks.access import require_access
from tasks.config import GenerateConfig, OutputConfig
from tasks.errors import RunError
from tests.seaweed import Seaweed, seaweed

__all__ = ["seaweed"]


@pytest.fixture(autouse=True)
def bucket(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dataset and a model in a bucket; no credentials but those of the environment."""
    fs = seaweed.filesystem()
    seaweed.bucket("access")
    fs.pipe_file("access/data.jsonl", b'{"prompt": "a"}\n')
    fs.pipe_file("access/model/config.json", b"{}")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    use(seaweed, monkeypatch)


def use(access: Seaweed, monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    for name, value in (access.environment | changed).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


def config(tmp_path: Path, s3: str, place: str | None = None) -> GenerateConfig:
    """A config in which one field names S3, and all others what is on the disk."""
    (tmp_path / "data.jsonl").write_text('{"prompt": "a"}\n')
    places = {"model": str(tmp_path), "dataset": str(tmp_path / "data.jsonl"), "output": str(tmp_path / "out")}
    remote = {"model": "s3://access/model", "dataset": "s3://access/*.jsonl", "output": "s3://access/out"}
    places[s3] = place or remote[s3]
    sections = {name: {"source" if name == "model" else "path": value} for name, value in places.items()}
    return GenerateConfig.model_validate(sections)


FIELDS = {"model": "model.source", "dataset": "dataset.path", "output": "output.path"}
every_place = pytest.mark.parametrize("place", FIELDS)


@every_place
def test_nothing_is_wrong_and_nothing_is_left(place: str, tmp_path: Path, seaweed: Seaweed) -> None:
    require_access(config(tmp_path, place))
    assert seaweed.filesystem().find("access") == ["access/data.jsonl", "access/model/config.json"]
    assert not (tmp_path / "out").exists()


@every_place
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "the credentials are refused for s3://access"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "the credentials are refused for s3://access"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "needs credentials, and there are none: set AWS_"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "needs credentials, and there are none: set AWS_"),
        ({"AWS_PROFILE": "nobody"}, "needs credentials, and there are none: set AWS_"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is no URL"),
    ],
)
def test_wrong_credentials(
    place: str, changed: dict[str, str | None], message: str, tmp_path: Path, seaweed: Seaweed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    use(seaweed, monkeypatch, **changed)
    refused(config(tmp_path, place), FIELDS[place], message)


@pytest.mark.parametrize(
    ("place", "user", "message"),
    [
        ("output", "reader", "the credentials may not write to s3://access/out"),
        ("output", "writer", "the credentials may not list s3://access/out"),
        ("dataset", "lister", r"the credentials may not read s3://access/\*\.jsonl"),
        ("dataset", "writer", "the credentials may not list s3://access/"),
        ("model", "lister", "the credentials may not read s3://access/model"),
        ("model", "writer", "the credentials may not list s3://access/model"),
    ],
)
def test_missing_rights(
    place: str, user: str, message: str, tmp_path: Path, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(seaweed.user(user), monkeypatch)
    refused(config(tmp_path, place), FIELDS[place], message)


@pytest.mark.parametrize("place", ["model", "output"])
def test_a_missing_bucket(place: str, tmp_path: Path) -> None:
    refused(config(tmp_path, place, "s3://there-is-none/x"), FIELDS[place], "there is no bucket 'there-is-none'")


@pytest.mark.parametrize("path", ["s3://there-is-none/x.jsonl", "s3://access/none.jsonl", "s3://access/none/*.csv"])
def test_a_missing_dataset(path: str, tmp_path: Path) -> None:
    refused(config(tmp_path, "dataset", path), "dataset.path", "no such file|there is no bucket")


def test_a_local_dataset_that_is_missing_or_a_path_of_no_kind(tmp_path: Path) -> None:
    refused(config(tmp_path, "dataset", str(tmp_path / "none.jsonl")), "dataset.path", "no such file")
    refused(config(tmp_path, "dataset", "nonsense://x"), "dataset.path", "local, s3:// and hf:// paths are known")


def test_a_store_that_does_not_answer(tmp_path: Path, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    use(seaweed, monkeypatch, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(RunError, match=r"output\.path: S3 cannot be reached for s3://access.*AWS_ENDPOINT"):
        require_access(config(tmp_path, "output"))
    assert time.monotonic() - began < 60  # and not after the minutes that a run waits for a store


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.zst", "data.parquet", "errors.jsonl", "errors.parquet"])
@pytest.mark.parametrize("remote", [False, True])
def test_files_that_no_run_made_are_not_written_over(name: str, remote: bool, tmp_path: Path, seaweed: Seaweed) -> None:
    folder = f"access/{tmp_path.name}" if remote else str(tmp_path / "out")
    where = f"s3://{folder}" if remote else folder
    fs = seaweed.filesystem() if remote else fsspec.filesystem("file", auto_mkdir=True)
    for held in (name, "shards/en/0.jsonl", "data.csv", "database.jsonl"):
        fs.pipe_file(f"{folder}/{held}", b"mine")
    refused(config(tmp_path, "output", where), "output.path", f"holds {name}, which no run made there: choose another")
    for ours in ("manifest.json", "shards/plan-n4.json", "shards/0123456789abcdef/00000.jsonl"):
        fs.pipe_file(f"{folder}/{ours}", b"{}")
        require_access(config(tmp_path, "output", where))
        fs.rm_file(f"{folder}/{ours}")
    assert fs.cat_file(f"{folder}/{name}") == b"mine"
    fs.rm(folder, recursive=True)


def test_the_datasets_own_file_is_not_written_over(tmp_path: Path, seaweed: Seaweed) -> None:
    own = "holds the dataset's own file .*/data.jsonl: choose another folder"
    refused(config(tmp_path, "output", str(tmp_path)), "output.path", own)
    given = config(tmp_path, "dataset", "s3://access/data.jsonl")
    both = given.model_copy(update={"output": OutputConfig(path="s3://access")})
    refused(both, "output.path", own)
    assert seaweed.filesystem().cat_file("access/data.jsonl") == b'{"prompt": "a"}\n'


def test_credentials_in_a_path_are_refused_and_not_shown(tmp_path: Path) -> None:
    for place in ("model", "dataset", "output"):
        with pytest.raises(ValidationError) as error:
            config(tmp_path, place, "s3://AKIA:SECRET@access/x")
        (line,) = wrong_fields(error.value)
        assert line == f"{FIELDS[place]}: must hold no credentials: they come from the environment"
    with pytest.raises(ValidationError, match=r"folder of this machine or s3://bucket/folder"):
        config(tmp_path, "output", "gs://bucket/x")


def refused(config: GenerateConfig, field: str, message: str) -> None:
    with pytest.raises(RunError, match=f"^{field}: .*({message})") as error:
        require_access(config)
    assert "\n" not in str(error.value)
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
    assert secret is None or secret == "wrong" or secret not in str(error.value)
