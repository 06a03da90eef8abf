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


def place(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"prompt":"a"}\n')
    return [str(folder / name) for name in names]


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (here,) = place(data, "z/here.jsonl")
    place(tmp_path, "elsewhere/there.jsonl", "elsewhere/.hidden.jsonl")
    (data / "again").symlink_to(data / "z")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "loop").symlink_to(data)
    (data / "nowhere").symlink_to(data / "none")
    (data / "itself").symlink_to(data / "itself")
    assert list_inputs(str(data)) == [str(data / "linked/there.jsonl"), here]
    found = list_inputs(str(data / "**" / "*.jsonl"))
    assert [Path(name).name for name in found] == ["here.jsonl", "there.jsonl"]


RESULTS = ("data.jsonl", "errors.jsonl", "shards/plan-n1.json", "shards/0123456789abcdef/00000.jsonl")


@pytest.mark.parametrize("path", [".", "*.jsonl", "**/*.jsonl", "linked"])
@pytest.mark.parametrize("name", ["out", "deep/er/out", "new"])
def test_results_inside_the_dataset_are_no_input(tmp_path: Path, path: str, name: str) -> None:
    data = tmp_path / "data"
    mine = place(data, "a.jsonl", "outer.jsonl")
    if name != "new":
        place(data / name, *RESULTS, "of/another/run/data.jsonl")
    (tmp_path / "linked").symlink_to(data)
    dataset = tmp_path / path if path == "linked" else data / path
    found = list_inputs(str(dataset), str(data / name))
    assert [Path(file).name for file in found] == [Path(file).name for file in mine]
    assert split(DatasetConfig(path=str(dataset)), 1, output_path=str(data / name)).records == 2


def test_a_dataset_that_shares_its_folder_with_its_results(tmp_path: Path) -> None:
    mine = place(tmp_path, "data.csv", "deep/data.jsonl", "train.jsonl")
    assert list_inputs(str(tmp_path), str(tmp_path)) == mine
    place(tmp_path, *RESULTS)
    assert list_inputs(str(tmp_path), f"file://{tmp_path}/") == mine
    assert list_inputs(str(tmp_path / "*.jsonl"), str(tmp_path)) == [str(tmp_path / "train.jsonl")]
    assert list_inputs(str(tmp_path / "train.jsonl"), str(tmp_path)) == [str(tmp_path / "train.jsonl")]
    with pytest.raises(RunError, match=r"^dataset\.path: .*: all that is there lies in output\.path"):
        list_inputs(str(tmp_path / "data.js*"), str(tmp_path))


@pytest.mark.parametrize("path", ["ds/data.jsonl", "ds", "ds/*.jsonl", "linked/data.jsonl", "link.jsonl"])
def test_a_dataset_is_never_written_over(tmp_path: Path, path: str) -> None:
    place(tmp_path / "ds", "data.jsonl", "train.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "ds")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "ds/data.jsonl")
    message = r"^output\.path: .*/ds holds the dataset's own file .*\.jsonl: choose another folder$"
    with pytest.raises(RunError, match=message):
        list_inputs(str(tmp_path / path), str(tmp_path / "ds"))


@pytest.mark.parametrize("path", ["data.jsonl", "shards", "shards/*/*.jsonl"])
def test_results_alone_are_no_dataset_of_their_own_run(tmp_path: Path, path: str) -> None:
    place(tmp_path, *RESULTS)
    with pytest.raises(RunError, match="holds the dataset's own file"):
        list_inputs(str(tmp_path / path), str(tmp_path))
    assert list_inputs(str(tmp_path / path), str(tmp_path.parent / "another"))


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


def test_whole_numbers_over_64_bits_keep_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    long = 340282366920938463463374607431768211455
    path.write_text(
        f'{{"id": {long}, "label": [{{"n": -{long}}}], "x": 1.5, "y": 1e30, "z": [18446744073709551615, -0]}}\n'
        f'{{"id": -9223372036854775808, "note": "{long}", "x": 0.1234567890123456789}}\n'
        f'{{"id": 18446744073709551616, "more": {"7" * 300}}}\n'
    )
    first, second, third = (record.fields for record in read_shard(shards_of(path, 3)[0]))
    assert first == {"id": str(long), "label": [{"n": f"-{long}"}], "x": 1.5, "y": 1e30, "z": [2**64 - 1, 0]}
    assert second == {"id": -(2**63), "note": str(long), "x": 0.1234567890123456789}
    assert third == {"id": "18446744073709551616", "more": "7" * 300}


def test_such_a_number_nested_too_deep_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"a":{"[" * 1000}{2**64}{"]" * 1000}}}\n')
    (bad,) = read_shard(shards_of(path)[0])
    assert isinstance(bad, BadRecord)
    assert bad.error.message == f"{path} line 1: a whole number over 64 bits is nested too deep to be read"


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
