"""Parquet: values as JSON, columns, row groups."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import DatasetConfig
from tasks.dataset import read_shard
from tasks.errors import RunError
from tasks.inputs import parquet
from tasks.split_dataset import split
from tests.inputs.tables import fields_of, split_path, texts, write_table


def test_conversations_come_as_in_jsonl(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": "{}"}}]
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "n": 1, "x": 0.5},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": calls}], "n": None, "x": None},
    ]
    assert fields_of(split_path(write_table(tmp_path / "data.parquet", rows))) == rows


def test_images_stay_dicts_with_bytes(tmp_path: Path) -> None:
    images = [{"bytes": b"\x89PNG\xff", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    rows = [{"prompt": "what is it", "image": images[0], "images": images}]
    path = write_table(tmp_path / "data.parquet", rows)
    before = split_path(path)
    assert fields_of(before) == rows
    images[0]["bytes"] = b"\x89PNG\x00"
    assert split_path(write_table(path, rows)).shards[0].sha256 != before.shards[0].sha256


def test_values_that_json_lacks_become_text_or_numbers(tmp_path: Path) -> None:
    row = {
        "day": datetime.date(2024, 1, 2),
        "times": [datetime.datetime(2024, 1, 2, 3, 4, 5)],
        "price": decimal.Decimal("1.50"),
        "span": datetime.timedelta(seconds=90),
        "inner": {"at": datetime.time(1, 2)},
    }
    path = tmp_path / "data.parquet"
    table = pa.Table.from_pylist([row]).append_column("map", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())))
    pq.write_table(table.append_column("__index_level_0__", pa.array([7])), path)
    expected = {"day": "2024-01-02", "times": ["2024-01-02T03:04:05"], "price": "1.50", "span": 90.0}
    assert fields_of(split_path(path)) == [expected | {"inner": {"at": "01:02:00"}, "map": {"a": 1}}]


def test_only_the_needed_columns_are_read_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    dataset = DatasetConfig(path=str(path))
    columns = ("id", "prompt", "absent")
    before = split(dataset, 1, None, columns=columns) if write_table(path, texts(20)) else None
    assert before is not None
    assert [record.fields for record in read_shard(before.shards[0])] == [
        {"id": row["id"], "prompt": row["prompt"]} for row in texts(20)[:16]
    ]
    write_table(path, [row | {"note": "other"} for row in texts(20)])
    assert split(dataset, 1, None, columns=columns).shards == before.shards


def test_row_groups_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    found = [split_path(write_table(path, texts(100), size), 30).shards for size in (1, 7, 30, 100)]
    assert found == [found[0]] * 4


def test_a_shard_is_reached_along_the_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = split_path(write_table(tmp_path / "data.parquet", texts(100), 10), 20).shards
    started: list[int] = []
    original = parquet._Rows._start_group
    monkeypatch.setattr(
        parquet._Rows, "_start_group", lambda rows, group: started.append(group) or original(rows, group)
    )
    assert [record.original_index for record in read_shard(shards[3])] == list(range(60, 80))
    assert started == [6, 7]


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(RunError, match=r"dataset\.path: .*data\.parquet is no Parquet file that can be read"):
        split_path(path)


def test_tools_and_calls_get_no_fields_of_one_another(tmp_path: Path) -> None:
    def tool(name: str, argument: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    def turns(argument: str) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "f", "arguments": {argument: {"content": "x"}}}}
        return [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]

    rows = [
        {"tools": [tool("weather", "city"), tool("search", "q")], "messages": turns("city")},
        {"tools": [tool("search", "q")], "messages": turns("q")},
    ]
    assert fields_of(split_path(write_table(tmp_path / "data.parquet", rows))) == rows


def test_other_columns_keep_their_empty_fields(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"meta": {"type": None, "score": 1.0, "role": None}, "parts": [{"type": "a", "x": None}]},
        {"meta": {"type": "a", "score": None, "role": "b"}, "parts": [{"type": None, "x": 1}]},
    ]
    assert fields_of(split_path(write_table(tmp_path / "data.parquet", rows))) == rows


def test_an_image_in_a_message_keeps_both_its_fields(tmp_path: Path) -> None:
    parts = [{"type": "image", "image": {"bytes": b"png", "path": None}}, {"type": "text", "text": "what is it"}]
    rows = [{"messages": [{"role": "user", "content": parts}]}]
    assert fields_of(split_path(write_table(tmp_path / "data.parquet", rows))) == rows


def test_nanoseconds_become_microseconds(tmp_path: Path) -> None:
    kinds = {
        "at": pa.timestamp("ns"),
        "zoned": pa.timestamp("ns", "UTC"),
        "time": pa.time64("ns"),
        "span": pa.duration("ns"),
        "listed": pa.list_(pa.timestamp("ns")),
        "long": pa.large_list(pa.duration("ns")),
        "fixed": pa.list_(pa.time64("ns"), 1),
        "inner": pa.struct([("at", pa.timestamp("ns"))]),
        "map": pa.map_(pa.string(), pa.duration("ns")),
    }
    row: dict[str, Any] = dict.fromkeys(("at", "zoned", "time", "span"), 1_000_001_999)
    row |= {"listed": [1999], "long": [1999], "fixed": [1999], "inner": {"at": 1999}, "map": [("a", 1999)]}
    path = tmp_path / "data.parquet"
    table = pa.Table.from_pylist([row, {}], pa.schema(list(kinds.items())))
    pq.write_table(table.append_column("day", pa.array([1999, None], pa.timestamp("ns")).dictionary_encode()), path)
    first, second = fields_of(split_path(path))
    early = "1970-01-01T00:00:00.000001"
    assert first == {
        "at": "1970-01-01T00:00:01.000001", "zoned": "1970-01-01T00:00:01.000001+00:00", "time": "00:00:01.000001",
        "span": 1.000001, "listed": [early], "long": [1e-06], "fixed": ["00:00:00.000001"], "inner": {"at": early},
        "map": {"a": 1e-06}, "day": early,
    }  # fmt: skip
    assert not any(second.values())


def test_the_keys_of_a_map_become_text(tmp_path: Path) -> None:
    keys: list[tuple[pa.DataType, Any]] = [
        (pa.int64(), 7), (pa.bool_(), True), (pa.date32(), datetime.date(2024, 1, 2)), (pa.binary(), b"b"),
    ]  # fmt: skip
    arrays = [pa.array([[(key, [1])]], pa.map_(kind, pa.list_(pa.int64()))) for kind, key in keys]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(arrays, ["a", "b", "c", "d"]), path)
    expected = {"a": {"7": [1]}, "b": {"true": [1]}, "c": {"2024-01-02": [1]}, "d": {"b": [1]}}
    assert fields_of(split_path(path)) == [expected]


@pytest.mark.parametrize(
    "odd",
    [
        pa.array([4_000_000], pa.int32()).cast(pa.date32()),
        pa.array([2**60], pa.timestamp("us")),
        pa.array([2**60], pa.timestamp("us", "Nowhere/At_All")),
        pa.array([[({"x": 1}, 2)]], pa.map_(pa.struct([("x", pa.int64())]), pa.int64())),
    ],
)
def test_a_column_that_cannot_be_used_is_named(tmp_path: Path, odd: pa.Array) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "odd": odd}), path)
    with pytest.raises(RunError, match=r"^dataset\.path: .*data\.parquet: column 'odd' holds what cannot be used: .*"):
        split_path(path)
    assert split(DatasetConfig(path=str(path)), 1, columns=("prompt",)).records == 1


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["c"]], ["prompt", "id", "prompt"]), path)
    with pytest.raises(RunError, match=r"dataset\.path: .*data\.parquet: two columns are named 'prompt'; rename one"):
        split_path(path)
