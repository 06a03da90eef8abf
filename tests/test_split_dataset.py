"""split_dataset: where shards begin and end, what their hashes depend on, how large they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tasks.config import DatasetConfig
from tasks.dataset import read_shard
from tasks.errors import RunError
from tasks.inputs import lines
from tasks.inputs.plan import choose_shard_size, plan_shards
from tasks.records import BadRecord, DatasetManifest, Record, ShardPlan
from tasks.split_dataset import split, split_dataset


def write_lines(path: Path, count: int, first: int = 0) -> Path:
    path.write_bytes(b"".join(b'{"prompt":"question %d"}\n' % number for number in range(first, first + count)))
    return path


def split_path(path: Path, shard_size: int | None = None, limit: int | None = None) -> DatasetManifest:
    return split(DatasetConfig(path=str(path), shard_size=shard_size, limit=limit), n=1)


def records_of(manifest: DatasetManifest) -> list[Record | BadRecord]:
    return [record for shard in manifest.shards for record in read_shard(shard)]


def prompts_of(manifest: DatasetManifest) -> list[str]:
    records = records_of(manifest)
    assert [record.original_index for record in records] == list(range(len(records)))
    return [record.fields["prompt"] for record in records if isinstance(record, Record)]


def test_shards_are_contiguous_byte_ranges(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", 10)
    manifest = split_path(path, shard_size=4)
    assert [(shard.index, shard.start, shard.records) for shard in manifest.shards] == [(0, 0, 4), (1, 4, 4), (2, 8, 2)]
    parts = [shard.parts[0] for shard in manifest.shards]
    assert [part.first_line for part in parts] == [1, 5, 9]
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    assert (parts[0].start, parts[-1].end) == (0, path.stat().st_size)
    assert manifest.files == (str(path),)
    assert (manifest.records, manifest.bytes, manifest.plan.last_size) == (10, path.stat().st_size, 4)


def test_the_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", 6)
    manifest = split_path(path, shard_size=4)
    content = path.read_bytes()
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()
    part = manifest.shards[1].parts[0]
    assert manifest.shards[1].sha256 == hashlib.sha256(content[part.start : part.end]).hexdigest()


def test_a_missing_last_newline_changes_no_shard(tmp_path: Path) -> None:
    whole = split_path(write_lines(tmp_path / "a.jsonl", 6), shard_size=4)
    cut = tmp_path / "b.jsonl"
    cut.write_bytes((tmp_path / "a.jsonl").read_bytes().removesuffix(b"\n"))
    shorter = split_path(cut, shard_size=4)
    assert [shard.sha256 for shard in shorter.shards] == [shard.sha256 for shard in whole.shards]
    assert prompts_of(shorter) == prompts_of(whole)


def test_a_last_line_without_newline_that_fills_the_shard(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt":"a"}\n{"prompt":"b"}')
    manifest = split_path(path, shard_size=2)
    assert [shard.records for shard in manifest.shards] == [2]
    assert prompts_of(manifest) == ["a", "b"]


def test_crlf_bom_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt":"a"}\r\n\r\n  \t\r\n {"prompt":"b"}\r\n\n{"prompt":"c"}\n\n   ')
    manifest = split_path(path, shard_size=1)
    assert (manifest.records, manifest.blank_lines) == (3, 5)
    assert manifest.shards[0].parts[0].start == 3
    assert prompts_of(manifest) == ["a", "b", "c"]
    assert [record.where for record in records_of(manifest)] == [f"{path} line {line}" for line in (1, 4, 6)]


def test_blank_lines_at_the_end_belong_to_no_full_shard(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", 4)
    before = split_path(path, shard_size=2)
    path.write_bytes(path.read_bytes() + b"\n\n")
    assert split_path(path, shard_size=2).shards == before.shards


def test_one_line_and_a_line_of_10_mb(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt":"%s"}' % (b"x" * 10_000_000))
    assert [len(prompt) for prompt in prompts_of(split_path(path))] == [10_000_000]
    path.write_bytes(path.read_bytes() + b'\n{"prompt":"short"}\n')
    manifest = split_path(path, shard_size=1)
    assert [len(prompt) for prompt in prompts_of(manifest)] == [10_000_000, 5]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t"])
def test_a_dataset_without_records_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"dataset\.path: .*data\.jsonl holds no records"):
        split_path(path)
    with pytest.raises(RunError, match="holds no records"):
        split_path(path, shard_size=3)


def test_utf_16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt":"a"}\n', encoding="utf-16")
    with pytest.raises(RunError, match=r"dataset\.path: .* is UTF-16; save it as UTF-8"):
        split_path(path)


def test_a_shard_spans_files_and_empty_files_are_nothing(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", 3)
    (tmp_path / "b.jsonl").touch()
    write_lines(tmp_path / "c.jsonl", 1, first=3)
    write_lines(tmp_path / "d.jsonl", 3, first=4)
    manifest = split_path(tmp_path, shard_size=5)
    assert [len(shard.parts) for shard in manifest.shards] == [3, 1]
    assert [Path(part.path).name for part in manifest.shards[0].parts] == ["a.jsonl", "c.jsonl", "d.jsonl"]
    assert prompts_of(manifest) == [f"question {number}" for number in range(7)]


def test_files_without_a_last_newline_do_not_run_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt":"a"}')
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt":"b"}')
    manifest = split_path(tmp_path, shard_size=9)
    assert prompts_of(manifest) == ["a", "b"]


def test_renaming_files_changes_no_shard_hash(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", 5)
    before = split_path(tmp_path, shard_size=2)
    (tmp_path / "a.jsonl").rename(tmp_path / "renamed.jsonl")
    after = split_path(tmp_path, shard_size=2)
    assert [shard.sha256 for shard in after.shards] == [shard.sha256 for shard in before.shards]
    assert after.sha256 == before.sha256


def test_appending_changes_only_the_last_shard(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", 10)
    before = [shard.sha256 for shard in split_path(path, shard_size=4).shards]
    write_lines(path, 11)
    after = [shard.sha256 for shard in split_path(path, shard_size=4).shards]
    assert after[:2] == before[:2]
    assert after[2] != before[2]


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 100])
def test_limit_stops_early(tmp_path: Path, limit: int) -> None:
    path = write_lines(tmp_path / "a.jsonl", 6)
    write_lines(tmp_path / "b.jsonl", 4, first=6)
    manifest = split_path(tmp_path, shard_size=4, limit=limit)
    used = min(limit, 10)
    assert manifest.records == used == len(prompts_of(manifest))
    if used < 6:
        content = b"".join(path.read_bytes().splitlines(keepends=True)[:used])
        assert (manifest.bytes, manifest.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_shards_are_the_same_whatever_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt":"a"}\r\n \n\n{"prompt":"b"}\n \n   {"prompt":"c"}\n{"prompt":"d"}  ')
    whole = split_path(path, shard_size=3)
    for size in (3, 4, 5, 7, 16):
        monkeypatch.setattr(lines, "BLOCK_BYTES", size)
        assert split_path(path, shard_size=3) == whole


def test_shard_size_follows_the_number_of_records(tmp_path: Path) -> None:
    assert [choose_shard_size(records, 1) for records in (1, 4096, 4097, 1_000_000)] == [16, 16, 32, 4096]
    assert split_path(write_lines(tmp_path / "data.jsonl", 5000)).plan.last_size == 32


def test_large_datasets_make_more_shards_rather_than_longer_ones() -> None:
    """A billion records on a thousand GPUs: 61,036 shards of some twenty minutes."""
    assert [choose_shard_size(records, 1) for records in (10**7, 10**9, 10**10)] == [16384, 16384, 262144]
    assert choose_shard_size(10**7, 8) == 2048


def test_records_with_many_samples_make_smaller_shards() -> None:
    assert [choose_shard_size(100, n) for n in (1, 16, 64, 1000)] == [16, 16, 4, 1]


def plan(records: int, *steps: tuple[int, int]) -> ShardPlan:
    return ShardPlan(records=records, steps=steps)


def test_shards_stay_what_they_are_however_a_dataset_grows() -> None:
    first = plan_shards(1000, 1)
    assert first == plan(1000, (0, 16))
    assert plan_shards(16 * 512, 1, first) == plan(16 * 512, (0, 16))
    more = plan_shards(16 * 512 + 1, 1, first)
    assert more == plan(16 * 512 + 1, (0, 16), (992, 64))  # of the first thousand, eight were no full shard
    assert plan_shards(16 * 512 + 1, 1, more) == more
    assert plan_shards(10**6, 1, more) == plan(10**6, (0, 16), (992, 64), (8160, 4096))
    assert plan_shards(500, 1, more) == plan(500, (0, 16), (992, 64))
    assert plan_shards(10**6, 1, plan(500, (0, 16), (992, 64))) == plan(10**6, (0, 16), (496, 4096))
    assert plan_shards(10**6, 1, plan(10, (0, 16))) == plan(10**6, (0, 4096))  # a first try of ten
    assert plan_shards(100, 1, plan(10**6, (0, 4096))) == plan(100, (0, 4096))


def test_a_dataset_that_outgrows_its_shards_keeps_them(tmp_path: Path) -> None:
    before = split_path(write_lines(tmp_path / "data.jsonl", 100))
    path = write_lines(tmp_path / "data.jsonl", 20_000)
    after = split(DatasetConfig(path=str(path)), 1, before.plan)
    assert after.shards[:6] == before.shards[:6]
    assert [shard.records for shard in after.shards[5:8]] == [16, 128, 128]
    assert prompts_of(after) == prompts_of(split_path(path))


def test_an_explicit_shard_size_wins(tmp_path: Path) -> None:
    dataset = DatasetConfig(path=str(write_lines(tmp_path / "data.jsonl", 10)), shard_size=3)
    assert split(dataset, n=1, known=plan(10, (0, 16))).plan.last_size == 3


def test_large_inputs_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.split_dataset.EXACT_BYTES", 1000)
    write_lines(tmp_path / "a.jsonl", 3000)
    write_lines(tmp_path / "b.jsonl", 3000, first=3000)
    manifest = split_path(tmp_path)
    assert manifest.records == 6000
    assert manifest.plan.last_size == 32


def test_a_wrong_estimate_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.split_dataset.EXACT_BYTES", 0)
    monkeypatch.setattr("tasks.split_dataset.estimate_records", lambda files, sizes: 1)
    manifest = split_path(write_lines(tmp_path / "data.jsonl", 16 * 513))
    assert manifest.plan.last_size == 64
    assert len(prompts_of(manifest)) == 16 * 513


def test_the_task_is_split_with_retries(tmp_path: Path) -> None:
    dataset = DatasetConfig(path=str(write_lines(tmp_path / "data.jsonl", 3)))
    assert split_dataset.fn(dataset, 2, None) == split(dataset, 2)
    assert (split_dataset.name, split_dataset.retries) == ("split_dataset", 3)
