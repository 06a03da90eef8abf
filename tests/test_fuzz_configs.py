"""Malformed configs: each is refused with status 2, in lines that a person can read, and none hangs or raises."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.command_line import parse
from tasks.config import GenerateConfig

BASE = "model: {source: m}\ndataset: {path: d.jsonl}\noutput: {path: out}\n"
TEXTS = {
    "empty": "",
    "list": "[]",
    "null": "null",
    "number": "42",
    "control characters": "\x00\x01",
    "text": "model",
    "not yaml": "a: b: c",
    "no such anchor": "model: *anchor",
    "a list that holds itself": "model: &a [*a]",
    "a list as key": "? [a]\n: b",
    "number as key": "{1: 2}",
    "two documents": BASE + "---\nx: 1\n",
    "a tab": "model:\n\tsource: x",
    "python code": "!!python/object/apply:os.system ['true']",
    "python name": "!!python/name:os.system ''",
    "broken binary": "model: !!binary xx",
    "broken date": "!!timestamp nope",
    "a set": "!!set {a, b}",
    "of the future": "%YAML 9.9\n---\n",
    "a key twice": BASE + "output: {path: elsewhere}\n",
    "merge of a number": BASE + "<<: 3",
    "a section of text": "model: m",
    "lists in lists": "[" * 3000,
    "objects in objects": "{a: " * 2000,
    "a long word": "x" * 100_000,
    "aliases": "a: &a [x,x]\nb: [*a,*a]",
    "empty paths": "model: {source: ''}\ndataset: {path: ''}\noutput: {path: ''}",
    "lone surrogate": BASE + 'prompt: {system: "\\ud800"}',
    "NUL in a path": 'model: {source: m}\ndataset: {path: "d\\0"}\noutput: {path: o}',
    "secrets": BASE + "engine: {base_urls: ['http://a:b@c/']}",
    "unknown section": BASE + "samplings: {n: 1}",
    "unknown field": BASE + "sampling: {N: 4}",
    "n infinite": BASE + "sampling: {n: .inf}",
    "n of 400 digits": BASE + "sampling: {n: " + "9" * 400 + "}",
    "n of 5000 digits": BASE + "sampling: {n: " + "9" * 5000 + "}",
    "n a date": BASE + "sampling: {n: 2021-01-01}",
    "n a time": BASE + "sampling: {n: 12:30:45}",
    "temperature nan": BASE + "sampling: {temperature: .nan}",
    "half a template": BASE + "prompt: {template: '{% for x in'}",
    "no such filter": BASE + "prompt: {template: '{{ x | nope }}'}",
    "parentheses in a template": BASE + "prompt: {template: '{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}'}",
    "blocks in blocks": BASE + "prompt: {template: '" + "{% if 1 %}" * 300 + "{% endif %}" * 300 + "'}",
    "half a pattern": BASE + "validation: {answer_pattern: '('}",
    "groups in groups": BASE + "validation: {answer_pattern: '" + "(" * 5000 + "'}",
    "a pattern repeated for ever": BASE + "validation: {answer_pattern: 'a{99999999999}'}",
    "no pattern": BASE + "validation: {answer_format: regex}",
    "no schema": BASE + "validation: {answer_schema: {type: nonsense}}",
    "a schema elsewhere": BASE + "validation: {answer_schema: {$ref: 'http://x/y'}}",
    "a schema of no kind": BASE + "validation: {answer_schema: {$schema: 5}}",
    "half a structure": BASE + "sampling: {structured: {regex: 'a('}}",
    "a structure of no kind": BASE + "sampling: {structured: {json_schema: {type: nonsense}}}",
    "nothing to choose": BASE + "sampling: {structured: {choice: []}}",
    "a kept field over a generated one": BASE[:-1].replace("{path: out}", "{path: out, keep_fields: [answer]}"),
    "an accuracy that nothing measures": BASE + "validation: {min_accuracy: 0.9}",
    "a format that nothing measures": BASE + "validation: {max_format_error_rate: 0.1}",
    "two structures": BASE + "sampling: {structured: {regex: a, choice: [b]}}",
    "rate above 1": BASE + "validation: {max_error_rate: 2}",
    "negative timeout": BASE + "engine: {stall_timeout: -1}",
    "GPUs by two names": BASE + "engine: {extra: {tensor_parallel_size: 2}}",
    "two overrides": BASE
    + "engine: {yarn: {factor: 2, original_max_position_embeddings: 8}, extra: {hf_overrides: {}}}",
    "an empty stop string": BASE + "sampling: {stop: [a, '']}",
    "a token id below 0": BASE + "sampling: {stop_token_ids: [-1]}",
    "servers with commas": BASE + "engine: {kind: openai, base_urls: ['http://a/v1,http://b/v1']}",
    "thinking said twice": BASE + "prompt: {enable_thinking: true, chat_template_kwargs: {enable_thinking: false}}",
    **{
        f"the template's own {name}": BASE + f"prompt: {{chat_template_kwargs: {{{name}: x}}}}"
        for name in (
            *("conversation", "messages", "tools", "add_generation_prompt"),
            *("chat_template", "tokenize", "return_dict", "return_tensors"),
        )
    },
    "another config": BASE + "config: other.yaml",
    "tokens": BASE + "sampling: {min_tokens: 5, max_tokens: 3}",
    "pixels": BASE + "prompt: {min_pixels: 5, max_pixels: 3}",
    "half a record": BASE + "dataset: {shard_size: 1.5}",
}
WRONG: list[Any] = ["", "x", -1, 1e308, [], ["x", 3], {"a": {"b": []}}, [[[[1]]]], "\u202e", 10**30, {"": None}]


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_a_malformed_config_is_refused_in_a_line_or_a_few(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refused(text, tmp_path / "run.yaml", capsys)
    assert 1 <= len(lines) <= 10


def test_wrong_values_anywhere_are_refused_or_accepted_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each field in turn gets values of a wrong type, and the field is named where it is refused."""
    dice = random.Random(5)
    refusals = 0
    for section, field in GenerateConfig.model_fields.items():
        for name in field.annotation.model_fields:  # type: ignore[union-attr]
            config = yaml.safe_load(BASE)
            config.setdefault(section, {})[name] = dice.choice(WRONG)
            path = tmp_path / "run.yaml"
            path.write_text(yaml.safe_dump(config))
            if lines := lines_of(path, capsys):
                assert any(line.startswith((f"error: {section}.{name}", f"error: {section}:")) for line in lines), lines
                refusals += 1
    assert refusals > 40


def test_a_config_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00m\x80")
    for place in (path, tmp_path, tmp_path / "nothing.yaml"):
        assert "cannot be read" in refused(None, place, capsys)[0]


def refused(text: str | None, path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a config is refused with."""
    if text is not None:
        path.write_text(text)
    lines = lines_of(path, capsys)
    assert lines
    return lines


def lines_of(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command line says of a config; nothing of one that is accepted."""
    status = 0
    try:
        parse(["--config", str(path)])
    except SystemExit as ended:
        status = int(str(ended.code))
    lines = capsys.readouterr().err.splitlines()
    assert status == (2 if lines else 0)
    assert all(line.startswith("error: ") and len(line) < 700 for line in lines)
    return lines
