"""Types of a table's columns, from rows alone."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pytest

from tasks.outputs.columns import Columns, DoesNotFit, find_columns


def columns_of(*values: Any, batch: int = 2) -> Columns:
    rows = [{"x": value} for value in values]
    return find_columns([rows[at : at + batch] for at in range(0, len(rows), batch)], ())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, "b"], pa.string()),
        ([None, None], pa.string()),
        ([1, None, 2], pa.int64()),
        ([1, 2.5, 3], pa.float64()),
        ([True, None, False], pa.bool_()),
        ([["a"], [], None, ["b", "c"]], pa.list_(pa.string())),
        ([[], []], pa.list_(pa.string())),
        ([{"a": 1}, {"b": "x"}, {"a": 2}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([[{"a": 1}], [{"a": None, "b": [1]}]], pa.list_(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))]))),
        (["2024-01-01", "2024-01-02T00:00:00"], pa.string()),
    ],
)
def test_a_column_has_the_type_of_its_values(values: list[Any], kind: Any) -> None:
    for batch in (1, 2, 10):
        columns = columns_of(*values, batch=batch)
        assert columns.schema.field("x").type == kind
        back = columns.batch([{"x": value} for value in values]).to_pylist()
        assert [row["x"] for row in back if not isinstance(row["x"], dict | list)] == [
            value for value in values if not isinstance(value, dict | list)
        ]


@pytest.mark.parametrize(
    "values",
    [
        ["a", 1, None],
        [True, 1],
        [["a"], "a"],
        ["a", ["a"]],
        [{"a": 1}, ["a"]],
        [[1], ["a"]],
        [{}, {}],
        [{f"key {number}": number} for number in range(100)],
    ],
)
def test_what_no_type_holds_is_json_text(values: list[Any]) -> None:
    for batch in (1, 2, 100):
        columns = columns_of(*values, batch=batch)
        assert columns.types == {"x": None}
        back = columns.batch([{"x": value} for value in values]).to_pylist()
        assert [row["x"] and orjson.loads(row["x"]) for row in back] == values


def test_a_number_that_no_column_of_numbers_holds_is_found_when_it_is_written() -> None:
    rows = [{"x": 2**60 + 1}, {"x": 0.5}]
    columns = find_columns([rows], ())
    with pytest.raises(DoesNotFit) as misfit:
        columns.batch(rows)
    assert misfit.value.column == "x"
    assert [orjson.loads(row["x"]) for row in columns.with_text("x").batch(rows).to_pylist()] == [2**60 + 1, 0.5]


def test_the_order_of_the_columns_is_that_of_the_format() -> None:
    rows = [{"extra": 1, "label": "a", "original_index": 0}, {"id": "r1", "original_index": 1}]
    assert list(find_columns([rows], ("original_index", "id", "label", "answer")).types) == [
        "original_index", "id", "label", "answer", "extra",
    ]  # fmt: skip
    assert "id" not in find_columns([rows[:1]], ("original_index", "id", "label", "answer")).types
