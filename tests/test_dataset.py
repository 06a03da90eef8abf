"""dataset: which files a path means, and the records of a shard."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import storage
from tasks.config import DatasetConfig
from tasks.dataset import list_inputs, read_shard, verify_shard
from tasks.errors import InputChanged, RunError
from tasks.inputs import lines
from tasks.records import BadRecord, Record, Shard
from tasks.split_dataset import split


def shards_of(path: Path, shard_size: int = 2) -> tuple[Shard, ...]:
    return split(DatasetConfig(path=str(path), shard_size=shard_size), n=1).shards


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt":"a"}\n{"prompt":"b"}\n{"prompt":"c"}\n')
    return path


def test_a_file_a_glob_and_a_folder(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.txt", "sub/c.jsonl", ".hidden/d.jsonl", "sub/.e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jsonl").mkdir()
    names = ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert list_inputs(str(tmp_path / "b.jsonl")) == [str(tmp_path / "b.jsonl")]
    assert list_inputs(str(tmp_path)) == [str(tmp_path / name) for name in names]
    assert list_inputs(f"file://{tmp_path}") == list_inputs(str(tmp_path))
    assert list_inputs(str(tmp_path / "*.jsonl")) == [str(tmp_path / name) for name in names[:2]]
    assert list_inputs(str(tmp_path / "**" / "*.jsonl")) == [str(tmp_path / name) for name in names]


def test_relative_paths_become_absolute(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    assert list_inputs("data.jsonl") == [str(data)]


@pytest.mark.parametrize("name", ["missing.jsonl", "*.nothing", "notes.txt", "empty"])
def test_nothing_to_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"^dataset\.path: .*known formats: \.jsonl"):
        list_inputs(str(tmp_path / name))


def test_a_record_knows_its_place_and_its_digest(data: Path) -> None:
    records = [record for shard in shards_of(data) for record in read_shard(shard)]
    digest = hashlib.sha256(b'{"prompt":"c"}').hexdigest()[:16]
    assert records[2] == Record(2, digest, f"{data} line 3", {"prompt": "c"})


def test_white_space_around_a_line_does_not_enter_its_digest(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_bytes(b'\xef\xbb\xbf {"prompt":"a"} \r\n')
    assert next(read_shard(shards_of(other)[0])).digest == next(read_shard(shards_of(data)[0])).digest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ', "line 2: not JSON: "),
        (b'{"prompt": "\xff"}', "line 2: not JSON: "),
        (b'["prompt"]', "line 2: must be a JSON object, got list"),
        (b"\xef\xbb\xbf", "line 2: not JSON: "),
    ],
)
def test_a_line_that_is_no_object_is_a_bad_record(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt":"a"}\n' + line + b'\n{"prompt":"c"}\n')
    first, bad, last = read_shard(shards_of(path, 3)[0])
    assert isinstance(bad, BadRecord)
    assert (bad.original_index, bad.where, bad.error.kind) == (1, f"{path} line 2", "malformed_record")
    assert bad.error.message.startswith(f"{path} {message}")
    assert (first.original_index, last.original_index) == (0, 2)


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt":"a"}\n{"prompt":"B"}\n{"prompt":"c"}\n',  # another value
        b'{"prompt":"a"}\n',  # cut
        b'{"p":1}\n{"p":2}\n{"p":3}\n{"p":4}\n{"p":5}\n',  # more lines in the same bytes
    ],
)
def test_a_changed_file_is_noticed(data: Path, content: bytes) -> None:
    shard = shards_of(data)[0]
    verify_shard(shard)
    data.write_bytes(content)
    with pytest.raises(
        InputChanged, match=r"dataset\.path: .*data\.jsonl changed while the run was using it; run again"
    ):
        verify_shard(shard)
    used = []
    with pytest.raises(InputChanged):
        used.extend(read_shard(shard))
    assert len(used) <= shard.records


def test_a_removed_file_is_noticed(data: Path) -> None:
    shard = shards_of(data)[0]
    data.unlink()
    with pytest.raises(InputChanged):
        verify_shard(shard)
    with pytest.raises(InputChanged):
        list(read_shard(shard))


def test_a_change_behind_the_shard_does_not_matter(data: Path) -> None:
    shard = shards_of(data)[0]
    data.write_bytes(data.read_bytes().replace(b'"c"', b'"C"'))
    verify_shard(shard)


def test_the_error_crosses_process_borders(data: Path) -> None:
    shard = shards_of(data)[0]
    data.unlink()
    with pytest.raises(InputChanged) as caught:
        verify_shard(shard)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"", b" ", b"\t\r", b'{"a":1}', b' {"a":2}\r', b"\xef\xbb\xbf", b"[1]", b"\x00", b"\x0b", b"\x1f"]
        ),
        st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
    ),
    max_size=12,
)


@given(
    files=st.lists(LINES, min_size=1, max_size=3), ended=st.booleans(), size=st.integers(1, 6), block=st.integers(3, 40)
)
def test_all_shards_together_are_the_lines(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], ended: bool, size: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("data")
    expected = []
    for number, content in enumerate(files):
        path = folder / f"{number}.jsonl"
        # A record that follows keeps the test apart from what is refused: UTF-16, and no records at all.
        whole = [b'{"first":1}', *content]
        path.write_bytes(b"\n".join(whole) + (b"\n" if ended else b""))
        expected += [(f"{path} line {n}", line.strip()) for n, line in enumerate(whole, 1) if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block)
        patch.setattr(storage, "COPY_BYTES", block)
        shards = shards_of(folder, size)
        records = [record for shard in shards for record in read_shard(shard)]
    assert [(record.where, record.digest) for record in records] == [
        (where, hashlib.sha256(line).hexdigest()[:16]) for where, line in expected
    ]
    assert [shard.records for shard in shards[:-1]] == [size] * (len(shards) - 1)
    for shard in shards:
        verify_shard(shard)
