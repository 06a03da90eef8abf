from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pytest

from tasks.config import ValidationConfig
from tasks.errors import RunError
from tasks.merge_shards import merge, merge_shards
from tasks.records import ShardManifest
from tasks.storage import LocalStorage, Storage, open_storage, sha256_of, write
from tests.shards import KEY, dataset_of, finish_all

FOLDER = f"shards/{KEY}"


def _finished(storage: Storage, records: int = 107, n: int = 2) -> list[ShardManifest]:
    return finish_all(storage, dataset_of(records, 20), n, ValidationConfig())


def test_the_merged_files_are_the_shards_in_order(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    manifests = _finished(storage)
    merged = merge(storage, FOLDER, manifests)
    parts = b"".join(storage.read(f"{FOLDER}/{m.data.name}") for m in manifests)
    assert storage.read("data.jsonl") == parts
    assert merged.data.sha256 == hashlib.sha256(parts).hexdigest()
    assert merged.errors.sha256 == sha256_of(storage, "errors.jsonl")
    rows = [orjson.loads(line) for name in ("data", "errors") for line in storage.read(f"{name}.jsonl").splitlines()]
    assert sorted((r["original_index"], r["sample_id"]) for r in rows) == [(i, s) for i in range(107) for s in (0, 1)]
    assert (merged.data.rows, merged.errors.rows) == (merged.tally.samples, merged.tally.errors) == (210, 4)
    assert merged.data.bytes == storage.size("data.jsonl")


def test_blocks_smaller_than_rows_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(str(tmp_path))
    manifests = _finished(storage)
    whole = merge(storage, FOLDER, manifests)
    monkeypatch.setattr("tasks.outputs.source.COPY_BYTES", 7)
    assert merge(storage, FOLDER, manifests) == whole
    assert sha256_of(storage, "data.jsonl") == whole.data.sha256


def test_no_shards_make_empty_files(tmp_path: Path) -> None:
    merged = merge(LocalStorage(str(tmp_path)), FOLDER, [])
    assert (merged.data.bytes, merged.data.rows) == (0, 0)
    assert (tmp_path / "errors.jsonl").read_bytes() == b""


@pytest.mark.parametrize("change", ["flip", "cut", "grow"])
def test_a_changed_shard_is_refused_by_name_and_nothing_appears(tmp_path: Path, change: str) -> None:
    storage = LocalStorage(str(tmp_path))
    manifests = _finished(storage)
    name = f"{FOLDER}/{manifests[2].data.name}"
    content = storage.read(name)
    changed = {"flip": content.replace(b"so", b"os", 1), "cut": content[:-9], "grow": content + b"{}\n"}[change]
    write(storage, name, changed)
    with pytest.raises(RunError, match=r"shards/k1/00002\.jsonl was changed after it was finished; run again"):
        merge(storage, FOLDER, manifests)
    assert not (tmp_path / "data.jsonl").exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    manifests = _finished(storage)
    storage.remove(f"{FOLDER}/{manifests[1].errors.name}")
    with pytest.raises(RunError, match=r"00001\.errors\.jsonl is gone; run again"):
        merge(storage, FOLDER, manifests)


def test_the_task_merges_by_the_folders_path(tmp_path: Path) -> None:
    manifests = _finished(LocalStorage(str(tmp_path)))
    merged = merge_shards.fn(str(tmp_path), FOLDER, manifests)
    assert merged.data.rows == 210
