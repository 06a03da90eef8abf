"""Both downloaders against a hub on loopback, with all that can go wrong on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tasks.config import ModelConfig
from tasks.download_model import fetch_model
from tasks.downloads import hub as hub_module
from tasks.downloads.repo_cache import hold
from tasks.errors import RunError
from tests.downloads.running import aria2c_below, start, wait_until
from tests.downloads.test_selection import NEEDED
from tests.flow_runs import wait_until as until
from tests.hub import TOKEN, Hub, Model, tiny_model

Config = Callable[..., ModelConfig]
WEIGHTS = "model-00001-of-00002.safetensors"
BOTH = pytest.mark.parametrize("downloader", ["hub", "hfd"])


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_RETRY_SECONDS", 0.01)


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "datagen"):
        yield caplog


def content(path: str) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}


def expected(model: Model) -> dict[str, bytes]:
    return {name: model.files[name] for name in NEEDED}


@BOTH
def test_brings_the_needed_files_at_a_pinned_commit(hub: Hub, config: Config, cache: Path, downloader: str) -> None:
    manifest = fetch_model(config(downloader=downloader))
    model = hub.models["org/tiny"]
    assert content(manifest.path) == expected(model)
    assert manifest.revision == model.commit
    assert manifest.identity == fetch_model(ModelConfig(source=manifest.path)).identity
    # huggingface_hub finds the same files in the cache, by the branch's name.
    assert snapshot_download("org/tiny", cache_dir=cache, local_files_only=True) == manifest.path


@BOTH
def test_a_present_model_costs_one_request_and_a_pinned_one_none(hub: Hub, config: Config, downloader: str) -> None:
    first = fetch_model(config(downloader=downloader))
    hub.requests.clear()
    assert fetch_model(config(downloader=downloader)) == first
    assert [r.path for r in hub.requests] == ["/api/models/org/tiny/revision/main"]
    hub.requests.clear()
    assert fetch_model(config(downloader=downloader, revision=first.revision)).path == first.path
    assert hub.requests == []


@pytest.mark.parametrize(("one", "other"), [("hub", "hfd"), ("hfd", "hub")])
def test_changing_the_downloader_downloads_nothing(hub: Hub, config: Config, one: str, other: str) -> None:
    first = fetch_model(config(downloader=one))
    sent = hub.sent.copy()
    assert fetch_model(config(downloader=other)) == first
    assert hub.sent == sent


def test_what_huggingface_hub_downloaded_is_used(hub: Hub, config: Config, cache: Path) -> None:
    snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.endpoint, token=False)
    sent = hub.sent.copy()
    fetch_model(config())
    assert hub.sent == sent


@BOTH
def test_a_new_commit_brings_only_what_changed(hub: Hub, config: Config, downloader: str) -> None:
    fetch_model(config(downloader=downloader))
    files = hub.models["org/tiny"].files | {"config.json": b'{"new": 1}'}
    hub.models["org/tiny"] = model = Model(files)
    hub.sent.clear()
    assert content(fetch_model(config(downloader=downloader)).path) == expected(model)
    assert set(hub.sent) == {"config.json"}


def test_a_commit_that_changes_no_file_of_ours_leaves_the_identity(hub: Hub, config: Config) -> None:
    """Else a new model card would make all shards again."""
    first = fetch_model(config())
    files = hub.models["org/tiny"].files
    hub.models["org/tiny"] = Model(files | {"README.md": b"new"})
    second = fetch_model(config())
    assert (second.revision == first.revision, second.identity) == (False, first.identity)
    hub.models["org/tiny"] = Model(files | {"config.json": b'{"new": 1}'})
    assert fetch_model(config()).identity != first.identity


def test_a_tag_is_pinned_to_its_commit(hub: Hub, config: Config) -> None:
    model = hub.models["org/tiny"]
    model.revisions["v1.0"] = model.commit
    assert fetch_model(config(revision="v1.0")).revision == model.commit


def test_the_endpoint_may_come_from_the_environment(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    assert fetch_model(ModelConfig(source="org/tiny", cache_dir=str(cache))).revision == hub.models["org/tiny"].commit


def test_patterns_choose_the_files(hub: Hub, config: Config) -> None:
    manifest = fetch_model(config(include=["*.json", "model-*"], exclude=["tokenizer*"]))
    assert set(content(manifest.path)) == {n for n in NEEDED if not n.startswith(("token", "chat"))}


def test_dummy_weights_are_not_downloaded(hub: Hub, config: Config) -> None:
    manifest = fetch_model(config(), dummy_weights=True)
    assert set(content(manifest.path)) == {n for n in NEEDED if not n.startswith("model-")}
    assert set(content(fetch_model(config()).path)) == set(NEEDED)


@BOTH
def test_offline_a_present_model_needs_no_request(
    hub: Hub, config: Config, downloader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_model(config(downloader=downloader))
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_model(config(downloader=downloader)) == first
    assert hub.requests == []


def test_offline_a_model_that_huggingface_hub_brought_is_used(
    hub: Hub, config: Config, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.endpoint, token=False)
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_model(config()).path == path
    assert hub.requests == []


def test_offline_a_missing_or_damaged_model_is_named(hub: Hub, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match=r"model.source: org/tiny is not in .*HF_HUB_OFFLINE is set: unset it"):
        fetch_model(config())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    flip(Path(fetch_model(config()).path) / WEIGHTS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match=rf"damaged in .*{WEIGHTS}.*HF_HUB_OFFLINE"):
        fetch_model(config())


def test_an_unreachable_hub_is_no_matter_to_a_present_model(
    hub: Hub, config: Config, seen: pytest.LogCaptureFixture
) -> None:
    first = fetch_model(config())
    hub.status = 503
    assert fetch_model(config()) == first
    assert "going on with the model in the cache" in seen.text
    assert fetch_model(config(endpoint="http://127.0.0.1:9")) == first


def test_an_unreachable_hub_is_told_in_one_line(config: Config) -> None:
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9 cannot be reached .*model.endpoint or HF_ENDPOINT"):
        fetch_model(config(endpoint="http://127.0.0.1:9"))


@BOTH
def test_a_byte_flipped_on_the_way_is_found(
    hub: Hub, config: Config, downloader: str, seen: pytest.LogCaptureFixture
) -> None:
    hub.damaged[WEIGHTS] = 1
    manifest = fetch_model(config(downloader=downloader))
    assert content(manifest.path) == expected(hub.models["org/tiny"])
    assert f"{WEIGHTS} came damaged" in seen.text
    assert hub.sent[WEIGHTS] == 2 * len(hub.models["org/tiny"].files[WEIGHTS])
    assert all(hub.sent[n] == len(hub.models["org/tiny"].files[n]) for n in NEEDED if n != WEIGHTS)


@BOTH
def test_a_small_file_damaged_on_the_way_is_found(hub: Hub, config: Config, downloader: str) -> None:
    hub.damaged["config.json"] = 1
    manifest = fetch_model(config(downloader=downloader))
    assert content(manifest.path) == expected(hub.models["org/tiny"])


@BOTH
def test_a_byte_flipped_on_the_disk_is_found_and_only_that_file_fetched(
    hub: Hub, config: Config, downloader: str, seen: pytest.LogCaptureFixture
) -> None:
    manifest = fetch_model(config(downloader=downloader))
    flip(Path(manifest.path) / WEIGHTS)
    hub.sent.clear()
    assert content(fetch_model(config(downloader=downloader)).path) == expected(hub.models["org/tiny"])
    assert hub.sent == {WEIGHTS: len(hub.models["org/tiny"].files[WEIGHTS])}
    assert f"{WEIGHTS} in the cache is damaged" in seen.text


@BOTH
def test_connections_that_break_are_gone_on_with(
    hub: Hub, config: Config, downloader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.cut[WEIGHTS] = 3
    hub.cut["config.json"] = 1
    manifest = fetch_model(config(downloader=downloader))
    assert content(manifest.path) == expected(hub.models["org/tiny"])
    assert hub.sent[WEIGHTS] < 2 * len(hub.models["org/tiny"].files[WEIGHTS])


@BOTH
def test_a_hub_that_always_damages_a_file_is_given_up(hub: Hub, config: Config, downloader: str) -> None:
    hub.damaged[WEIGHTS] = 1000
    with pytest.raises(ConnectionError, match=rf"model.source: 1 files of org/tiny could not .*{WEIGHTS}.*run again"):
        fetch_model(config(downloader=downloader))


# A kill loses 10 MB of a file with `hub`, and a second's work with `hfd`: sizes and speeds are chosen by that.
@pytest.mark.parametrize(("downloader", "size", "delay"), [("hub", 60_000_000, 0.001), ("hfd", 6_000_000, 0.5)])
def test_killed_downloads_go_on_where_they_stopped(
    hub: Hub, config: Config, downloader: str, size: int, delay: float, cache: Path
) -> None:
    hub.models["org/tiny"] = model = tiny_model(size, shards=1)
    hub.delay = delay
    weights = "model-00001-of-00001.safetensors"
    for _ in range(3):
        process, before = start(config(downloader=downloader)), hub.sent[weights]
        wait_until(lambda b=before: hub.sent[weights] > b + 0.3 * size, process)
        process.kill()
        process.communicate()
    hub.delay /= 10  # aria2c first asks for the whole file, to learn its size, and hangs up: let little be sent by then
    before = hub.sent[weights]
    manifest = fetch_model(config(downloader=downloader))
    assert content(manifest.path)[weights] == model.files[weights]
    assert hub.sent[weights] - before < 0.85 * size
    assert not list(cache.rglob("*part*"))


def test_a_kill_ends_aria2c_too(hub: Hub, config: Config, cache: Path) -> None:
    hub.delay = 0.5
    process = start(config(downloader="hfd"))
    wait_until(lambda: bool(aria2c_below(cache)), process)
    process.kill()
    process.communicate()
    until(lambda: not aria2c_below(cache), 5)


@BOTH
def test_a_server_without_ranges_does_too(hub: Hub, config: Config, downloader: str) -> None:
    hub.ranges = False
    hub.cut[WEIGHTS] = 1
    manifest = fetch_model(config(downloader=downloader))
    assert content(manifest.path) == expected(hub.models["org/tiny"])


@BOTH
def test_two_runs_at_once_download_once(hub: Hub, config: Config, downloader: str) -> None:
    hub.delay = 0.05
    runs = [start(config(downloader=downloader)) for _ in range(2)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert outputs[0][0] == outputs[1][0] != ""
    assert {name: hub.sent[name] for name in NEEDED} == {n: len(hub.models["org/tiny"].files[n]) for n in NEEDED}


def test_a_run_that_waits_says_so(tmp_path: Path, config: Config, cache: Path, hub: Hub) -> None:
    with hold(cache / ".locks" / "models--org--tiny" / "download.lock", ""):
        process = start(config())
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("another run downloads into" in line for line in lines)
    assert process.wait(60) == 0
    process.communicate()


def test_a_gated_model_says_what_to_do(hub: Hub, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["org/tiny"].gated = True
    with pytest.raises(
        RunError, match=r"org/tiny is gated: accept its licence at https://\S+/org/tiny and set HF_TOKEN"
    ):
        fetch_model(config())
    monkeypatch.setenv("HF_TOKEN", "hf_anotheraccount")
    with pytest.raises(RunError, match=r"gated: accept the licence with HF_TOKEN's account at"):
        fetch_model(config())
    assert not any("/cdn/" in r.path for r in hub.requests)


@BOTH
def test_the_token_opens_gated_models_and_is_shown_to_nobody_else(
    hub: Hub, config: Config, cache: Path, downloader: str
) -> None:
    hub.models["org/tiny"].gated = hub.models["org/tiny"].private = True
    hub.delay = 0.3
    process = start(config(downloader=downloader), "DEBUG", HF_TOKEN=TOKEN)
    wait_until(lambda: hub.sent[WEIGHTS] > 0, process)
    for pid in aria2c_below(cache):
        assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    path, log = process.communicate(timeout=120)
    assert content(path.strip()) == expected(hub.models["org/tiny"]), log
    assert "signedsigned" not in log
    assert TOKEN not in log + path
    elsewhere = [r.token for r in hub.requests if r.host.startswith("localhost")]
    assert elsewhere
    assert set(elsewhere) == {None}
    assert not [p for p in cache.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "org/none"}, r"model.source: there is no folder org/none, and http\S+ has no such model"),
        ({"revision": "v9"}, r"model.revision: org/tiny has no revision 'v9'"),
        ({"source": "not/a/hub/id"}, r"model.source: 'not/a/hub/id' is neither a folder that exists nor a hub id"),
        ({"source": "org/empty"}, r"model.source: org/empty has no config.json"),
        ({"source": "org/weightless"}, r"model.source: org/weightless has no weights"),
        (
            {"source": "org/halved"},
            r"model.source: org/halved is incomplete: model-00002-of-00002.safetensors, named in",
        ),
    ],
)
def test_a_model_that_cannot_be_had_is_told_in_one_line(
    hub: Hub, config: Config, fields: dict[str, str], message: str
) -> None:
    hub.models["org/empty"] = Model({"README.md": b"#"})
    hub.models["org/weightless"] = Model({"config.json": b"{}"})
    whole = tiny_model().files
    hub.models["org/halved"] = Model({n: d for n, d in whole.items() if n != "model-00002-of-00002.safetensors"})
    with pytest.raises(RunError, match=message) as error:
        fetch_model(config(**fields))
    assert "\n" not in str(error.value)


def test_names_that_lead_out_of_the_cache_are_refused(hub: Hub, config: Config, cache: Path) -> None:
    hub.models["org/tiny"].files["../../../evil.json"] = b"{}"
    hub.models["org/tiny"].oids["../../../evil.json"] = "0" * 40
    with pytest.raises(RunError, match=r"model.endpoint: .*evil.json"):
        fetch_model(config(include=["*"]))


def test_a_full_disk_is_told_before_the_download(hub: Hub, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(RunError, match=r"model.cache_dir: org/tiny needs 0.0 GB more"):
        fetch_model(config())
    assert hub.sent == {}


def test_progress_is_shown(
    hub: Hub, config: Config, seen: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.downloads.progress.SECONDS", 0.05)
    hub.delay = 0.05
    fetch_model(config())
    lines = [m for m in seen.messages if m.startswith("downloading org/tiny: ")]
    assert lines
    assert all(" of 620 kB (" in line and line.endswith("/s") for line in lines)


def test_a_cache_that_cannot_be_written_is_used_as_it_is(hub: Hub, config: Config, cache: Path) -> None:
    path = snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.endpoint, token=False)
    repo = cache / "models--org--tiny"
    (repo / "listings").write_text("a file where a folder is to be made")
    assert fetch_model(config()).path == path


@pytest.mark.parametrize("damage", [0, 1])
def test_what_huggingface_hub_itself_fetches_is_verified_too(
    hub: Hub, config: Config, damage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The way that files in Xet storage take; this hub has none, so huggingface_hub gets them by plain requests.
    monkeypatch.setattr("tasks.downloads.http._by_xet", lambda *_: True)
    hub.damaged[WEIGHTS] = damage
    assert content(fetch_model(config()).path) == expected(hub.models["org/tiny"])
    assert hub.sent[WEIGHTS] == (1 + damage) * len(hub.models["org/tiny"].files[WEIGHTS])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
