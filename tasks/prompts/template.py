"""prompt.template: Jinja2 in a sandbox, bounded in time and size, so that no template can hold up an engine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

from tasks.records import Json

MOST_SECONDS = 5.0
"""Of processor time, for one record."""
LATE_SECONDS = 0.2
"""The same, once the template has taken too long for several records: it will for all."""
SEVERAL = 5
MOST_CHARACTERS = 50_000_000
MOST_POWER = 1000
_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{7,}|\*)|:[^{}]*\d{7,}")


def render(source: str, fields: Json) -> str:
    """The template over a record's fields. May raise anything; SecurityError where it takes too long or too much."""
    template, late = compiled(source)
    limit = _Limit(MOST_SECONDS if len(late) < SEVERAL else LATE_SECONDS)
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate({**fields, "range": limit.range}):
            pieces.append(piece)
            size += len(piece)
            limit.require()
            _require_size(size)
    except _TooLateError:
        late.append(True)
        raise
    return "".join(pieces)


@lru_cache(maxsize=8)
def compiled(source: str) -> tuple[Any, list[bool]]:
    """The template, ready to render, and a mark for each record that it took too long for.

    Raises jinja2.TemplateSyntaxError, or what its parser makes of nonsense.
    """
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals.pop("lipsum")
    for name in ("center", "format", "indent", "wordwrap"):
        environment.filters[name] = _small(environment.filters[name])
    return environment.from_string(source), []


class _TooLateError(SecurityError):
    pass


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Products, powers and paddings that would fill the memory are refused."""
        if operator == "**" and (abs(left) > MOST_CHARACTERS or abs(right) > MOST_POWER):
            raise SecurityError("** of numbers that large")
        if operator == "%" and isinstance(left, str):
            _require_narrow(left)
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if hasattr(text, "__len__") and isinstance(times, int):
                    _require_size(len(text) * times)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """The same of methods such as ljust."""
        if isinstance(getattr(__obj, "__self__", None), str | bytes):
            for argument in args:
                _require_size(argument if isinstance(argument, int) else 0)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """The same of `format`."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and value.__name__ in ("format", "format_map"):
            _require_narrow(owner)
        return super().wrap_str_format(value)


class _Limit:
    """The time that one record may take."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def require(self) -> None:
        if time.thread_time() > self._end:
            raise _TooLateError(f"it takes more than {self._seconds:g} s")

    def range(self, *arguments: int) -> Sequence[int]:
        """Jinja2's `range`, which also looks at the time: loops without any output make no pieces to stop at."""
        return _Numbers(safe_range(*arguments), self)


class _Numbers(Sequence[int]):
    def __init__(self, numbers: range, limit: _Limit) -> None:
        self._numbers = numbers
        self._limit = limit

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        return self._numbers[place]

    def __iter__(self) -> Iterator[int]:
        for count, number in enumerate(self._numbers):
            if not count & 0xFF:
                self._limit.require()
            yield number

    def __repr__(self) -> str:
        return repr(self._numbers)


def _small(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filter_)
    def small(*arguments: Any, **named: Any) -> Any:
        for argument in (*arguments, *named.values()):
            _require_size(argument if isinstance(argument, int) else 0)
            _require_narrow(argument if isinstance(argument, str) else "")
        return filter_(*arguments, **named)

    return small


def _require_size(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise SecurityError(f"it makes more than {MOST_CHARACTERS} characters")


def _require_narrow(pattern: str) -> None:
    if _WIDTH.search(pattern):
        raise SecurityError("it pads to a width that large")
