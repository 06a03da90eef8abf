"""The answer in a completion, and whether it is right.

Runs once a sample in the engine's process, so nothing heavy is imported, patterns and schemas are compiled once, and no
pattern, however bad, may hold up the engine: each search has a time limit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from math import comb
from typing import Any

import orjson
import regex

from tasks.config import ValidationConfig
from tasks.records import Json

OPEN, CLOSE = "<answer>", "</answer>"
PATTERN_SECONDS = 1.0

_FENCED = regex.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", regex.DOTALL)
_NUMBER = regex.compile(
    r"(?P<sign>(?<![\w.)])[-+−])?(?:[$€£¥]\s?(?P<sign2>-)?)?(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?P<exponent>[eE][-+]?\d{1,4}(?!\d))?\s?(?P<percent>\\?%)?",
    regex.ASCII,
)

_FRACTION = regex.compile(
    r"(?P<sign>(?<![\w.)])[-+−])?(?:\\[dt]?frac\{(?P<over>\d{1,18})\}\{(?P<under>\d{1,18})\}"
    r"|(?<![\d/.,])(?P<over>\d{1,18})\s?/\s?(?P<under>\d{1,18})(?![\d/]|[.,]\d))",
    regex.ASCII,
)
"""`3/4` and LaTeX's `\\frac{3}{4}`; of a date (3/4/2026) no part is one."""


def extract_answer(predict: str, validation: ValidationConfig, finish_reason: str = "stop") -> str | None:
    """The answer in a completion, stripped; None where there is none in `validation.answer_format`.

    The text between the last complete `<answer>` and `</answer>` is looked at first, whatever the format. A tag left
    open counts when the completion was stopped, as by stop='</answer>', not when it was cut at max_tokens.
    """
    tagged = _tagged(predict, cut=finish_reason == "length")
    if validation.answer_format == "regex":
        found = _search(validation.answer_pattern, tagged) if tagged is not None else None
        return found if found is not None else _search(validation.answer_pattern, predict)
    if validation.answer_format == "json_schema":
        return _valid_json(predict if tagged is None else tagged, validation.answer_schema)
    return tagged


def format_ok(predict: str, validation: ValidationConfig, finish_reason: str = "stop") -> bool:
    """Whether a completion holds an answer, not empty, in `validation.answer_format`."""
    return answer_ok(extract_answer(predict, validation, finish_reason), validation)


def answer_ok(answer: str | None, validation: ValidationConfig) -> bool:
    """The same of a row's `answer`, which was extracted with these settings."""
    return validation.answer_format == "none" or bool(answer)


def graded_text(row: Json, validation: ValidationConfig) -> str | None:
    """What of a row is compared with its label: the answer, or all of `predict` where no format is asked for."""
    answer: str | None = row["answer"]
    if answer is None and validation.answer_format == "none":
        return str(row["predict"])
    return answer


def answer_matches(answer: str | None, label: Any, validation: ValidationConfig) -> bool | None:
    """Whether an answer is right by `validation.label_match`; None where there is nothing to compare with.

    A label that is a list is a list of right answers. An object is compared as JSON.
    """
    if validation.label_match == "none" or label is None:
        return None
    if answer is None:
        return False
    if isinstance(label, list):
        return any(_matches_one(answer, one, validation.label_match) for one in label)
    return _matches_one(answer, label, validation.label_match)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, of n >= k samples of which c are right."""
    return 1.0 - comb(n - c, k) / comb(n, k)


def majority(answers: Sequence[str | None], validation: ValidationConfig) -> str | None:
    """One of the commonest answers, the first of them at a tie; None where there is no answer.

    Answers count as the same when their stripped text is, or their last number where labels are matched by number.
    """
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for answer in answers:
        if answer is not None:
            vote = _vote(answer, validation)
            first.setdefault(vote, answer)
            counts[vote] += 1
    return first[counts.most_common(1)[0][0]] if counts else None


def _tagged(predict: str, cut: bool) -> str | None:
    start = last = predict.rfind(OPEN)
    while start >= 0:
        end = predict.find(CLOSE, start)
        if end >= 0:
            return predict[start + len(OPEN) : end].strip()
        start = predict.rfind(OPEN, 0, start)
    return None if last < 0 or cut else predict[last + len(OPEN) :].strip()


def _search(pattern: str | None, text: str) -> str | None:
    try:
        match = regex.search(pattern or "", text, timeout=PATTERN_SECONDS)
    except TimeoutError:
        return None
    if match is None:
        return None
    found: str = next((group for group in match.groups() if group is not None), match.group())
    return found.strip()


def _valid_json(text: str, schema: Json | None) -> str | None:
    fenced = _FENCED.fullmatch(text)
    body: str = (fenced.group(1) if fenced else text).strip()
    try:
        valid = _validator(orjson.dumps(schema)).is_valid(orjson.loads(body))
    except (orjson.JSONDecodeError, RecursionError):
        return None
    return body if valid else None


@lru_cache(maxsize=8)
def _validator(schema: bytes) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    parsed = orjson.loads(schema)
    return validator_for(parsed)(parsed, registry=Registry())  # nothing is fetched


def _matches_one(answer: str, label: Any, how: str) -> bool:
    if isinstance(label, dict | list):
        return _same_json(answer, label)
    text = label if isinstance(label, str) else orjson.dumps(label, default=str).decode()
    if how == "number":
        return _same_number(answer, text)
    if how == "regex":
        return _fullmatch(text, answer.strip())
    return answer.strip() == text.strip()


def _same_json(answer: str, label: Any) -> bool:
    try:
        return bool(orjson.loads(answer) == label)
    except orjson.JSONDecodeError:
        return False


def _fullmatch(pattern: str, text: str) -> bool:
    try:
        return regex.fullmatch(pattern, text, timeout=PATTERN_SECONDS) is not None
    except (regex.error, TimeoutError):
        return False


def _same_number(answer: str, label: str) -> bool:
    """50% is 50 to a label without a percent sign, and 0.5 too."""
    mine, theirs = _last_number(answer), _last_number(label)
    if mine is None or theirs is None:
        return False
    (value, percent), (right, right_percent) = mine, theirs
    if percent == right_percent:
        return value == right
    return value == right or (value / 100 == right if percent else value == right / 100)


def _vote(answer: str, validation: ValidationConfig) -> str:
    number = _last_number(answer) if validation.label_match == "number" else None
    return answer.strip() if number is None else f"{number[0].normalize()}{'%' if number[1] else ''}"


def _last_number(text: str) -> tuple[Decimal, bool] | None:
    found, fraction = _last(_NUMBER, text), _last(_FRACTION, text)
    if found is None:
        return None
    if fraction is not None and found.end() <= fraction.end() and int(fraction["under"]):
        part = Decimal(fraction["over"]) / Decimal(fraction["under"])
        return (-part if fraction["sign"] in ("-", "−") else part), False
    negative = found["sign"] in ("-", "−") or found["sign2"] is not None
    try:
        value = Decimal(found["digits"].replace(",", "") + (found["exponent"] or ""))
    except InvalidOperation:
        return None
    return (-value if negative else value), found["percent"] is not None


def _last(pattern: Any, text: str) -> Any:
    """The last match, or None."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)
