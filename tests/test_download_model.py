"""The task: which way a model comes, and models in local folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tasks.config import ModelConfig
from tasks.download_model import download_model, fetch_model
from tasks.errors import RunError
from tests.downloads.test_selection import NEEDED
from tests.hub import tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    for name in NEEDED:
        (path / name).write_bytes(tiny_model().files[name])
    return path


def identity(folder: Path, **fields: object) -> str:
    return fetch_model(ModelConfig.model_validate({"source": str(folder), **fields})).identity


def test_a_folder_is_used_where_it_lies(folder: Path) -> None:
    manifest = fetch_model(ModelConfig(source=str(folder)))
    assert manifest.path == str(folder)
    assert manifest.revision is None


def test_a_relative_folder_comes_before_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    source = str(folder.relative_to(folder.parent.parent))
    assert fetch_model(ModelConfig(source=source)).path == str(folder)


def test_moving_a_folder_keeps_its_identity(folder: Path) -> None:
    first = identity(folder)
    assert identity(folder.rename(folder.with_name("elsewhere"))) == first


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja"])
def test_changing_a_file_changes_the_identity(folder: Path, name: str) -> None:
    first = identity(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"!")
    assert identity(folder) != first


def test_renaming_a_file_changes_the_identity(folder: Path) -> None:
    first = identity(folder)
    (folder / "chat_template.jinja").rename(folder / "other.jinja")
    assert identity(folder) != first


def test_files_that_vllm_does_not_read_do_not_enter_the_identity(folder: Path) -> None:
    first = identity(folder)
    (folder / "README.md").write_text("read me")
    (folder / "helper.py").write_text("print()")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"copy")
    assert identity(folder) == first
    assert identity(folder, trust_remote_code=True) != first


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], r"model.source: \S+ has no config.json"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], r"model.source: \S+ has no weights"),
        (["model-00002-of-00002.safetensors"], r"is incomplete: model-00002-of-00002.safetensors, named in"),
    ],
)
def test_an_incomplete_folder_is_named(folder: Path, missing: list[str], message: str) -> None:
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(RunError, match=message) as error:
        fetch_model(ModelConfig(source=str(folder)))
    assert "\n" not in str(error.value)


def test_dummy_weights_need_only_a_config(folder: Path) -> None:
    for name in os.listdir(folder):
        if name.startswith("model"):
            (folder / name).unlink()
    assert fetch_model(ModelConfig(source=str(folder)), dummy_weights=True).path == str(folder)
    (folder / "config.json").unlink()
    with pytest.raises(RunError, match=r"has no config.json"):
        fetch_model(ModelConfig(source=str(folder)), dummy_weights=True)


@pytest.mark.parametrize("source", ["/no/such/folder", "./no/such/folder", "~/no/such/folder"])
def test_a_folder_that_is_not_there_is_no_hub_id(source: str) -> None:
    with pytest.raises(RunError, match=r"model.source: \S+ is not a folder"):
        fetch_model(ModelConfig(source=source))


def test_the_home_folder_may_be_written_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fetch_model(ModelConfig(source="~/model")).path == str(folder)


def test_a_linked_folder_has_the_same_identity(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in NEEDED:
        (linked / name).symlink_to(folder / name)
    assert identity(linked) == identity(folder)


def test_a_copy_has_the_same_identity(folder: Path, tmp_path: Path) -> None:
    assert identity(Path(shutil.copytree(folder, tmp_path / "copy"))) == identity(folder)


def test_the_task_retries_with_growing_delays() -> None:
    assert download_model.name == "download_model"
    assert download_model.tags == {"download"}
    assert download_model.retries == 3
    assert download_model.retry_jitter_factor
    delays = download_model.retry_delay_seconds
    assert isinstance(delays, list)
    assert delays == sorted(delays)
    assert delays[0] < delays[-1]
