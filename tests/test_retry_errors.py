"""Error rows are tried again when that is asked for, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from tasks.records import ErrorRow
from tasks.retry_errors import retry_errors
from tasks.shard_store import Row
from tests.pools import FakeRun

PROMPTS = ["TOO LONG" if i in (3, 60) else f"question {i}" for i in range(150)]


def make(folder: Path) -> FakeRun:
    return FakeRun.make(folder, PROMPTS, sampling={"n": 2})


def test_what_was_mended_is_made_and_the_rest_stays(tmp_path: Path) -> None:
    run = make(tmp_path)
    first = {manifest.index: manifest for manifest in run.run()}
    assert [first[index].errors.rows for index in range(3)] == [2, 2, 0]
    assert retry_errors(run.store, run.shards, first) == 4
    assert [run.store.manifest(shard, 2) is None for shard in run.shards] == [True, True, False]
    (tmp_path / "out/mended").touch()
    again = make(tmp_path).run()
    assert [(m.errors.rows, m.data.rows, m.resumed_samples) for m in again] == [(0, 100, 98), (0, 100, 98), (0, 100, 0)]
    assert again[2] == first[2]
    before, after = (folder_rows(run, name) for name in ("00000.jsonl", "00001.jsonl"))
    assert sum(b"TOO LONG" in row for row in before + after) == 4


def test_a_shard_under_way_owes_its_errors_again_too(tmp_path: Path) -> None:
    run = make(tmp_path)
    shard = run.shards[0]
    sample = Row("a", {"original_index": 1, "sample_id": 0, "predict": "x"})
    error = Row("b", ErrorRow(2, 0, "media_unreachable", "away").row())
    for rows in ([sample, error], [error]):
        run.store.write_chunk(shard, rows)
    assert retry_errors(run.store, run.shards, {}) == 2
    assert list(run.store.chunk_rows(shard)) == [sample]
    assert retry_errors(run.store, run.shards, {}) == 0


def folder_rows(run: FakeRun, name: str) -> list[bytes]:
    return run.store.storage.read(f"{run.store.folder}/{name}").splitlines()
