"""CSV: quoted newlines, spoilt rows, headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import RunError
from tasks.inputs import csv_rows
from tasks.records import BadRecord
from tests.inputs.tables import fields_of, read_all, split_path


def write(folder: Path, content: bytes) -> Path:
    path = folder / "data.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("size", [1, 2, 9])
def test_quoted_newlines_bom_crlf_and_blank_lines(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, b'\xef\xbb\xbfid,prompt\r\n1,"a\nb, ""c"""\r\n\r\n2,d\r\n\n3,""')
    manifest = split_path(path, size)
    prompts = ['a\nb, "c"', "d", ""]
    assert fields_of(manifest) == [{"id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts, 1)]
    assert manifest.blank_lines == 2
    assert [record.where for record in read_all(manifest)] == [f"{path} line {line}" for line in (2, 5, 7)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"1", "1 fields where the header has 2"),
        (b"1,a,b", "3 fields where the header has 2"),
        (b'1,"a"b', "not CSV: "),
        (b"1,\xff", "not UTF-8"),
    ],
)
def test_a_spoilt_row_is_a_bad_record_and_spoils_no_other(tmp_path: Path, row: bytes, message: str) -> None:
    path = write(tmp_path, b"id,prompt\n0,a\n" + row + b"\n2,c\n")
    for size in (1, 3):
        first, bad, last = read_all(split_path(path, size))
        assert isinstance(bad, BadRecord)
        assert bad.error.message.startswith(f"{path} line 3: {message}")
        assert (first.fields["prompt"], last.fields["prompt"]) == ("a", "c")


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, b'id,prompt\n0,a\n1,"b\n2,a long one\n3,d\n')
    records = read_all(split_path(path, 9))
    assert [type(record).__name__ for record in records] == ["Record", "BadRecord"]
    # Where it swallows too much, it is given up and the lines that follow are records again.
    monkeypatch.setattr(csv_rows, "LONGEST_FIELD", 10)
    records = read_all(split_path(path, 9))
    assert [type(record).__name__ for record in records] == ["Record", "BadRecord", "Record"]
    assert records[2].where == f"{path} line 5"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,prompt,id\n1,2,3\n", "the header names 'id' twice; rename one"),
        (b"id,\xff\n1,2\n", "line 1: no CSV header in UTF-8"),
        ("id,prompt\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"", "holds no records"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(RunError, match=f"dataset\\.path: .*{message}"):
        split_path(write(tmp_path, content))


def test_how_a_field_is_quoted_does_not_matter(tmp_path: Path) -> None:
    plain = split_path(write(tmp_path, b"id,prompt\n1,a\n"), 9).shards[0]
    quoted = split_path(write(tmp_path, b'"prompt","id"\r\n"a","1"\r\n'), 9).shards[0]
    assert quoted.sha256 == plain.sha256


@pytest.mark.parametrize("size", [1, 9])
def test_a_quoted_empty_cell_of_a_single_column_is_a_record(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, b'prompt\nfirst\n""\n  \n\nthird\n')
    manifest = split_path(path, size)
    assert fields_of(manifest) == [{"prompt": "first"}, {"prompt": ""}, {"prompt": "third"}]
    assert manifest.blank_lines == 2
