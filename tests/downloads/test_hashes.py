from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tasks.downloads import hashes
from tasks.downloads.hashes import HashCache, has_oid


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hashes, "_LARGE_BYTES", 1000)
    path = tmp_path / "weights"
    path.write_bytes(b"w" * 2000)
    return path


def test_a_large_file_is_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.sha256(b"w" * 2000).hexdigest()
    assert HashCache().sha256_all([large]) == [expected]
    monkeypatch.setattr(hashes, "_sha256", None)
    assert HashCache().sha256_all([large]) == [expected]


def test_a_changed_file_is_read_again(large: Path) -> None:
    HashCache().sha256_all([large])
    before = large.stat().st_mtime_ns
    large.write_bytes(b"x" * 2000)
    os.utime(large, ns=(before + 1, before + 1))
    assert HashCache().sha256(large) == hashlib.sha256(b"x" * 2000).hexdigest()


def test_a_moved_file_stays_known(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = HashCache()
    expected = cache.sha256(large)
    cache.moved(large, large.with_name("moved"))
    cache.save()
    monkeypatch.setattr(hashes, "_sha256", None)
    assert HashCache().sha256(large.with_name("moved")) == expected


def test_files_that_are_gone_are_forgotten(large: Path, tmp_path: Path) -> None:
    HashCache().sha256_all([large])
    other = large.with_name("other")
    large.rename(other)
    HashCache().sha256_all([other])
    kept = (tmp_path / "user-cache" / "datagen-flow" / "hashes.json").read_text()
    assert str(other) in kept
    assert str(large) + ":" not in kept


def test_a_cache_that_cannot_be_used_costs_only_time(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(large / "not-a-folder"))
    assert len(HashCache().sha256_all([large])[0]) == 64


def test_oids_are_those_of_git(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"content")
    oid = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert has_oid(path, oid, HashCache())
    assert has_oid(path, hashlib.sha256(b"content").hexdigest(), HashCache())
    assert not has_oid(path, "0" * 40, HashCache())
