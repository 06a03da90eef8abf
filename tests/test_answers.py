from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.answers import answer_matches, extract_answer, format_ok, majority, pass_at_k
from tasks.config import ValidationConfig

PAR = ValidationConfig(answer_format="par")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
JSON = ValidationConfig(answer_format="json_schema", answer_schema=SCHEMA)


def by(how: str) -> ValidationConfig:
    return ValidationConfig.model_validate({"label_match": how})


def pattern(text: str) -> ValidationConfig:
    return ValidationConfig(answer_format="regex", answer_pattern=text)


@pytest.mark.parametrize(
    ("predict", "answer"),
    [
        ("<answer> 42 </answer> because", "42"),
        ("<answer>1</answer> no: <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>", "1"),
        ("<answer>1</answer> stray </answer>", "1"),
        ("<answer>a <answer>b</answer>", "b"),
        ("<answer>cut by stop", "cut by stop"),
        ("no tags", None),
        ("</answer>", None),
        ("<answer></answer>", ""),
    ],
)
def test_the_last_complete_tag_holds_the_answer(predict: str, answer: str | None) -> None:
    assert extract_answer(predict, PAR) == answer
    assert extract_answer(predict, ValidationConfig()) == answer


def test_an_open_tag_cut_at_max_tokens_is_no_answer() -> None:
    assert extract_answer("<answer>12", PAR, "length") is None
    assert extract_answer("<answer>12</answer> and so", PAR, "length") == "12"


def test_format_ok_wants_an_answer_that_is_not_empty() -> None:
    assert format_ok("<answer>1</answer>", PAR)
    assert not format_ok("<answer> </answer>", PAR)
    assert not format_ok("1", PAR)
    assert format_ok("anything", ValidationConfig())


@pytest.mark.parametrize(
    ("expression", "predict", "answer"),
    [
        (r"Answer: (\w+)", "Answer: B, I think", "B"),
        (r"[A-D]", "It is C.", "C"),
        (r"A=(\d)|B=(\d)", "B=2", "2"),
        (r"\d+", "Step 1. <answer>42</answer>", "42"),
        (r"<answer>(.*?)</answer>", "<answer>42</answer>", "42"),
        (r"Answer: (\w+)", "none", None),
    ],
)
def test_regex_answers(expression: str, predict: str, answer: str | None) -> None:
    assert extract_answer(predict, pattern(expression)) == answer


def test_a_pattern_that_explodes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.answers.PATTERN_SECONDS", 0.05)
    assert extract_answer("a" * 40 + "!", pattern(r"(a|a)*(a|a)*(a|a)*$(?<=b)")) is None


@pytest.mark.parametrize(
    ("predict", "answer"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ('\n```json\n{"a": 1}\n```\n', '{"a": 1}'),
        ('so <answer>{"a": 2}</answer>', '{"a": 2}'),
        ('{"a": "x"}', None),
        ('{"a": 1', None),
        ("[" * 900 + "]" * 900, None),
    ],
)
def test_json_answers(predict: str, answer: str | None) -> None:
    assert extract_answer(predict, JSON) == answer


@pytest.mark.parametrize(
    ("how", "answer", "label", "expected"),
    [
        ("none", "1", "1", None),
        ("exact", "1", None, None),
        ("exact", " yes ", "yes\n", True),
        ("exact", "Yes", "yes", False),
        ("exact", "42", 42, True),
        ("exact", "true", True, True),
        ("exact", "b", ["a", "b"], True),
        ("exact", '{"x":1}', {"x": 1}, True),
        ("exact", "x", {"x": 1}, False),
        ("exact", None, "x", False),
        ("number", "so 3 + 4 = 7.", "7", True),
        ("number", "$1,234.50", 1234.5, True),
        ("number", "-$5", "-5", True),
        ("number", "$-5", "-5", True),
        ("number", "10-5", "5", True),
        ("number", "−5", "-5", True),
        ("number", "答案是42。", "#### 42", True),
        ("number", "1e3", "1000", True),
        ("number", ".5", "0.50", True),
        ("number", "50%", "50", True),
        ("number", "50\\%", "0.5", True),
        ("number", "0.5", "50%", True),
        ("number", "50%", "0.5%", False),
        ("number", "7", "8", False),
        ("number", "so it is 1/4.", "3/4", False),
        ("number", "2/8", "0.25", True),
        ("number", "\\boxed{-\\frac{1}{2}}", "-0.5", True),
        ("number", "\\frac{1}{2}", "\\dfrac{3}{2}", False),
        ("number", "1/2 of 10 is 5", "5", True),
        ("number", "on 3/4/2026", "2026", True),
        ("number", "1/0", "0", True),
        ("number", "none", "8", False),
        ("number", "8", "none", False),
        ("number", "1e99999999999999999999", "5", False),
        ("number", "\\boxed{12}", "12", True),
        ("regex", " cat ", "cats?", True),
        ("regex", "cat!", "cats?", False),
        ("regex", "cat", "(", False),
    ],
)
def test_answer_matches(how: str, answer: str | None, label: object, expected: bool | None) -> None:
    assert answer_matches(answer, label, by(how)) is expected


def test_a_label_pattern_that_explodes_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.answers.PATTERN_SECONDS", 0.05)
    assert answer_matches("a" * 40 + "!", r"(a|a)*(a|a)*$(?<=b)", by("regex")) is False


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_majority() -> None:
    assert majority(["a", None, "b", " b"], by("exact")) == "b"
    assert majority(["b", "a"], by("exact")) == "b"
    assert majority([None], by("exact")) is None
    assert majority(["it is 3", "3.0", "4"], by("number")) == "it is 3"


@given(st.text(), st.sampled_from([PAR, JSON, pattern(r"(.)\d"), by("number"), by("regex"), by("exact")]), st.text())
def test_no_text_breaks_it(predict: str, validation: ValidationConfig, label: str) -> None:
    answer = extract_answer(predict, validation)
    answer_matches(answer if answer is not None else predict, label, validation)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [("answer_pattern", "(", "no regular expression"), ("answer_schema", {"type": 3}, "no JSON schema")],
)
def test_bad_patterns_and_schemas_are_refused_with_the_config(field: str, value: object, what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        ValidationConfig.model_validate({field: value})
