"""The columns of a table of rows: a type for each that holds all its values.

Numbers, strings and booleans stay what they are, lists and objects become Arrow's where they are alike. What no type
holds (a label that is a number here and a word there, an object with ever new keys) is written as JSON text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from tasks.records import Json

SAMPLE_COLUMNS = (
    "original_index", "sample_id", "id", "prompt", "label", "predict", "reasoning", "answer", "finish_reason",
    "prompt_tokens", "completion_tokens",
)  # fmt: skip
ERROR_COLUMNS = ("original_index", "sample_id", "error", "message")
_COUNTS = {"original_index", "sample_id", "prompt_tokens", "completion_tokens"}
_ONLY_WHERE_SEEN = {"id"}
MOST_LEAVES = 64
"""Of a nested column; an object with more keys than this is no record but a map, and goes as JSON text."""


class DoesNotFit(Exception):
    """A value is not of its column's type after all."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


@dataclass(frozen=True, slots=True)
class Columns:
    """Names in order, with their types; None: JSON text."""

    types: dict[str, Any]

    @property
    def schema(self) -> Any:
        return pa.schema([(name, pa.string() if kind is None else kind) for name, kind in self.types.items()])

    def with_text(self, name: str) -> Columns:
        """This column as JSON text."""
        return Columns(self.types | {name: None})

    def batch(self, rows: Sequence[Json]) -> Any:
        """The rows as an Arrow RecordBatch. Raises DoesNotFit."""
        arrays = [self._array(name, kind, [row.get(name) for row in rows]) for name, kind in self.types.items()]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _array(self, name: str, kind: Any, values: list[Any]) -> Any:
        if kind is None:
            return pa.array([None if v is None else orjson.dumps(v).decode() for v in values], pa.string())
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise DoesNotFit(name) from None


def find_columns(batches: Iterable[Sequence[Json]], first: Sequence[str]) -> Columns:
    """The columns of these rows, the names in `first` leading; holds no more than a batch."""
    seen: dict[str, _Seen] = {}
    for rows in batches:
        values: dict[str, list[Any]] = {}
        for row in rows:
            for name, value in row.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
                elif name not in values:
                    values[name] = []
        for name, column in values.items():
            seen.setdefault(name, _Seen()).add(column)
    leading = [name for name in first if name in seen or name not in _ONLY_WHERE_SEEN]
    names = [*leading, *(name for name in seen if name not in leading)]
    return Columns({name: pa.int64() if name in _COUNTS else seen.get(name, _Seen()).type() for name in names})


@dataclass
class _Seen:
    """What a column's values were so far."""

    scalars: set[type] = field(default_factory=set)
    nested: Any = None
    odd: bool = False

    def add(self, values: list[Any]) -> None:
        kinds = {type(value) for value in values}
        self.scalars |= kinds - {list, dict}
        if self.odd or not kinds & {list, dict}:
            return
        if self.scalars:
            self.odd = True
            return
        try:
            found = pa.array(values).type
            self.nested = found if self.nested is None else _common(self.nested, found)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            self.odd = True
        else:
            self.odd = not _storable(self.nested)

    def type(self) -> Any:
        if self.odd or (self.nested is not None and self.scalars):
            return None
        if self.nested is not None:
            return _without_nulls(self.nested)
        if self.scalars <= {str}:
            return pa.string()
        if self.scalars == {bool}:
            return pa.bool_()
        if self.scalars <= {int, float}:
            return pa.float64() if float in self.scalars else pa.int64()
        return None


def _common(one: Any, other: Any) -> Any:
    schemas = [pa.schema([("value", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("value").type


def _storable(kind: Any) -> bool:
    """Parquet has no object without keys, and nobody wants a thousand columns."""
    leaves = list(_leaves(kind))
    return len(leaves) <= MOST_LEAVES and not any(pa.types.is_struct(leaf) for leaf in leaves)


def _leaves(kind: Any) -> Iterable[Any]:
    if pa.types.is_list(kind):
        yield from _leaves(kind.value_type)
    elif pa.types.is_struct(kind) and kind.num_fields:
        for child in kind:
            yield from _leaves(child.type)
    else:
        yield kind


def _without_nulls(kind: Any) -> Any:
    """Where nothing but null was seen, the type is that of text."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(child.name, _without_nulls(child.type)) for child in kind])
    return kind
