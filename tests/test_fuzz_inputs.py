"""Malformed inputs: a file that cannot be read is told in one line, a bad record is an error row; nothing hangs."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tasks.config import DatasetConfig, PromptConfig
from tasks.dataset import read_shard, verify_shard
from tasks.errors import RunError
from tasks.prompts.chat import ChatFormat
from tasks.prompts.conversation import read_conversation
from tasks.records import BadRecord, Record, RecordError
from tasks.split_dataset import split
from tests.pools import FakeRun, all_places

NOISE = random.Random(1).randbytes(5000)
GOOD = b'{"prompt": "hi"}\n'
FILES = {
    "noise.jsonl": NOISE,
    "noise.jsonl.gz": NOISE,
    "noise.jsonl.zst": NOISE,
    "noise.parquet": NOISE,
    "noise.csv": NOISE,
    "empty.jsonl": b"",
    "empty.jsonl.gz": b"",
    "empty.parquet": b"",
    "empty.csv": b"",
    "blank.jsonl": b"\n\n \n",
    "cut.jsonl.gz": gzip.compress(GOOD * 5000)[:-30],
    "cut.jsonl.zst": zstandard.compress(NOISE.hex().encode() * 3 + b"\n")[:-300],
    "tail.jsonl.gz": gzip.compress(GOOD) + b"tail",
    "bomb.jsonl.gz": gzip.compress(b" " * 20_000_000),
    "brackets.jsonl.gz": gzip.compress(b"[" * 20_000_000),
    "nul.jsonl": b"\0" * 5000,
    "returns.jsonl": GOOD.replace(b"\n", b"\r") * 5,
    "utf16.jsonl": '{"prompt": "x"}\n'.encode("utf-16"),
    "header.csv": b"a,b\n",
    "ragged.csv": b"prompt,b\n1\n1,2,3\n",
    "quote.csv": b'prompt,b\n"never closed,2\n',
    "twice.csv": b"prompt,prompt\na,b\n",
    "latin.csv": "prompt\né\n".encode("latin-1"),
    "hollow.parquet": b"PAR1" + b"\0" * 100 + b"PAR1",
    "footer.parquet": b"PAR1" + NOISE[:50] + b"\xff\xff\xff\x7fPAR1",
}
LINES = [
    b"",  # blank: no record
    b"{",
    b"}",
    b"null",
    b"3",
    b'"text"',
    b"[]",
    b"{}",
    b"{'prompt': 'x'}",
    b'{"prompt": "x"} more',
    b'{"prompt": "x"}{"prompt": "y"}',
    b'{"prompt": "x",}',
    b'{"prompt": NaN}',
    b'{"prompt": Infinity}',
    b'{"prompt": "x", "label": NaN}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "a\x00b"}',
    b'{"prompt": "tab\there"}',
    b'{"prompt": 1e999}',
    b'{"prompt": null}',
    b'{"prompt": 3}',
    b'{"prompt": []}',
    b'{"prompt": {}}',
    b'{"prompt": true}',
    b'{"prompt": ""}',
    b'{"prompt": "  "}',
    b'{"prompt": "' + b"[" * 9 + b'"',
    b'{"prompt": "x", "label": ' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"prompt": "x", "id": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}",
    b'{"prompt": "x", "label": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"messages": null}',
    b'{"messages": 3}',
    b'{"messages": "hi"}',
    b'{"messages": {}}',
    b'{"messages": []}',
    b'{"messages": [null]}',
    b'{"messages": [[]]}',
    b'{"messages": [{}]}',
    b'{"messages": [{"role": "user"}]}',
    b'{"messages": [{"role": "user", "content": 3}]}',
    b'{"messages": [{"role": "user", "content": {}}]}',
    b'{"messages": [{"role": 3, "content": "x"}]}',
    b'{"messages": [{"role": null, "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": [3]}]}',
    b'{"messages": [{"role": "user", "content": [{}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": 3}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}',
    b'{"messages": [{"role": "wizard", "content": "x"}]}',
    b'{"messages": [{"role": "system", "content": "x"}]}',
    b'{"messages": [{"role": "assistant", "content": "x"}]}',
    b'{"messages": [{"role": ["user"], "content": "x"}]}',
    b'{"prompts": "x"}',
]
STRANGE = [
    b'{"prompt": "x", "label": 123456789012345678901234567890}',
    b'{"prompt": "x", "label": -0.0, "id": {"a": [1, null]}}',
    b'{"prompt": "x", "prompt": "y"}',
    b'{"prompt": "\\u0000 \\u202e \\ufffe"}',
    b'\xef\xbb\xbf{"prompt": "x"}',
    b'{"prompt": "' + b"long " * 200_000 + b'"}',
    b'  {"prompt": "x"}  ',
    b'{"prompt": "<|im_start|>assistant<|im_end|><think></think>"}',
    b'{"prompt": "x", "": "", "label": ""}',
]


@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_is_told_in_one_line_or_gives_error_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    told = ""
    try:
        shards = split(DatasetConfig(path=str(path)), 1, None).shards
    except RunError as error:
        shards, told = (), str(error)
    assert bool(shards) != (name in told)
    for shard in shards:
        verify_shard(shard)
        records = list(read_shard(shard))
        assert len(records) == shard.records
        assert all(isinstance(record, BadRecord) for record in records)


def test_malformed_records_are_error_rows_and_strange_ones_are_generated(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, [], output={"keep_fields": ["label"], "chunk_seconds": 0.2}, lines=LINES + STRANGE)
    run.run()
    bad = len(LINES) - 1
    assert run.places() == all_places(bad + len(STRANGE), 1)
    assert [row["original_index"] for row in run.rows(errors=True)] == list(range(bad))
    kinds = {row["error"] for row in run.rows(errors=True)}
    assert kinds == {"malformed_record", "empty_prompt", "row_not_writable"}
    assert all(len(row["message"]) < 2000 and "\n" not in row["message"] for row in run.rows(errors=True))
    assert not run.view.engines[0].restarts


def test_a_models_own_template_meets_the_same_records(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(LINES + STRANGE))
    config = DatasetConfig(path=str(path))
    chat = ChatFormat(str(tiny_qwen3), _prompt_config())
    made, kinds = 0, set()
    for record in _records(config):
        try:
            made += bool(chat.render(read_conversation(record, config, _prompt_config())).token_ids)
        except RecordError as error:
            kinds.add(error.kind)
    assert kinds <= {"malformed_record", "empty_prompt", "template_error"}
    assert made >= len(STRANGE)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ 1 / 0 }}",
        "{{ missing.field }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ prompt.nothing() }}",
        "{% include 'file' %}",
    ],
)
def test_a_template_that_runs_wild_is_an_error_row(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.prompts.template.MOST_SECONDS", 0.3)
    record = Record(0, "", "data.jsonl line 1", {"prompt": "x"})
    with pytest.raises(RecordError) as raised:
        read_conversation(record, DatasetConfig(path="x"), _prompt_config(template=template))
    assert raised.value.kind == "template_error"
    assert raised.value.message.startswith("data.jsonl line 1: prompt.template: ")


def _prompt_config(**fields: str) -> PromptConfig:
    return PromptConfig(**fields)  # type: ignore[arg-type]


def _records(config: DatasetConfig) -> Iterator[Record]:
    for shard in split(config, 1, None).shards:
        yield from (record for record in read_shard(shard) if isinstance(record, Record))
