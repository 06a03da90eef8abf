"""The server of a single run: it answers, ends with the run, and is not started where one is configured."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows import own_server


def test_a_run_with_no_server_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    own_server.start_ahead()
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        with own_server.serving():
            url = get_current_settings().api.url
            assert url is not None
            assert own_server.is_own(url)
            with urllib.request.urlopen(f"{url}/health") as answer:
                assert answer.status == 200
        assert get_current_settings().api.url is None
    assert not own_server.is_own(url)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/health")


def test_a_configured_server_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that a profile names, which only Prefect knows: what was started ahead is ended."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    own_server.start_ahead()
    url = "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: url}), own_server.serving():
        assert get_current_settings().api.url == url
        assert not own_server.is_own(url)
    assert not own_server.is_own(url)


def test_a_server_in_the_environment_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(own_server, "OwnServer", lambda: pytest.fail("started"))
    own_server.start_ahead()
