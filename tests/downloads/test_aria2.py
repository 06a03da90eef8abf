from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.config import ModelConfig
from tasks.download_model import fetch_model
from tasks.downloads import aria2, http
from tasks.downloads.hub_api import HubRepo
from tasks.downloads.repo_cache import RemoteFile, RepoCache
from tasks.errors import RunError
from tests.hub import Hub, noise

Config = Callable[..., ModelConfig]
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture
def without_aria2c(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_aria2c_is_there_for_these_tests() -> None:
    assert aria2.is_installed(), "these tests need aria2c: apt-get install aria2"


@pytest.mark.usefixtures("without_aria2c")
def test_hfd_without_aria2c_says_how_to_install_it(hub: Hub, config: Config) -> None:
    with pytest.raises(RunError, match=r"model.downloader: hfd needs aria2c: install it \(apt-get install aria2\)"):
        fetch_model(config(downloader="hfd"))
    assert hub.requests == []


def ranges(hub: Hub) -> list[str]:
    return [r.range for r in hub.requests if r.path.endswith(WEIGHTS) and r.range]


@pytest.fixture
def large(hub: Hub) -> Hub:
    model = hub.models["org/tiny"]
    hub.models["org/tiny"] = type(model)(model.files | {WEIGHTS: noise(5_000_000, 9)})
    return hub


def test_auto_takes_aria2c_for_a_mirror_and_many_connections(large: Hub, config: Config) -> None:
    fetch_model(config(downloader="auto"))
    assert len(ranges(large)) >= 3


@pytest.mark.usefixtures("without_aria2c")
def test_auto_does_without_aria2c(large: Hub, config: Config) -> None:
    fetch_model(config(downloader="auto"))
    assert ranges(large) == []


def file_and_cache(hub: Hub, cache: Path) -> tuple[RemoteFile, RepoCache]:
    model = hub.models["org/tiny"]
    repo = RepoCache(cache, "org/tiny")
    repo.blobs.mkdir(parents=True)
    return RemoteFile(WEIGHTS, len(model.files[WEIGHTS]), model.oids[WEIGHTS]), repo


def test_a_file_with_holes_and_no_control_file_is_not_believed(hub: Hub, config: Config, cache: Path) -> None:
    file, repo = file_and_cache(hub, cache)
    aria2.partial_path(repo, file).write_bytes(bytes(100_000))
    manifest = fetch_model(config(downloader="hfd"))
    assert Path(manifest.path, WEIGHTS).read_bytes() == hub.models["org/tiny"].files[WEIGHTS]


def test_a_full_size_damaged_file_is_not_believed(hub: Hub, config: Config, cache: Path) -> None:
    file, repo = file_and_cache(hub, cache)
    aria2.partial_path(repo, file).write_bytes(bytes(file.size))
    manifest = fetch_model(config(downloader="hfd"))
    assert Path(manifest.path, WEIGHTS).read_bytes() == hub.models["org/tiny"].files[WEIGHTS]


def test_a_whole_file_that_a_kill_left_unverified_is_not_fetched_again(hub: Hub, config: Config, cache: Path) -> None:
    file, repo = file_and_cache(hub, cache)
    aria2.partial_path(repo, file).write_bytes(hub.models["org/tiny"].files[WEIGHTS])
    fetch_model(config(downloader="hfd"))
    assert hub.sent[WEIGHTS] == 0


def test_goes_on_with_what_the_other_downloader_began(large: Hub, config: Config, cache: Path) -> None:
    hub = large
    file, repo = file_and_cache(hub, cache)
    http.partial_path(repo, file).write_bytes(hub.models["org/tiny"].files[WEIGHTS][:4_000_000])
    hub.delay = 0.01  # aria2c first asks for the whole file, to learn its size, and hangs up
    manifest = fetch_model(config(downloader="hfd"))
    assert Path(manifest.path, WEIGHTS).read_bytes() == hub.models["org/tiny"].files[WEIGHTS]
    assert hub.sent[WEIGHTS] < 2_500_000


def test_the_token_is_not_in_what_a_repo_looks_like(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in repr(HubRepo.of(config()))
