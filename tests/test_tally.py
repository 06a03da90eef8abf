from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tasks.config import ValidationConfig
from tasks.records import ErrorRow, FileManifest, Json, Sample, ShardManifest, Tally, length_bin
from tasks.shard_store import ShardStore
from tasks.storage import LocalStorage, sha256_of, write
from tasks.tally import grading_key, regrade, tally_file, tally_rows

NUMBER = ValidationConfig(label_match="number")
PAR = ValidationConfig(answer_format="par", label_match="exact")


def row(index: int, sample: int, predict: str, label: Any = None, answer: str | None = None, **fields: Any) -> Json:
    values: Json = {"finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": 3, "reasoning": None, **fields}
    made = Sample(index, sample, id=None, prompt="p", label=label, predict=predict, answer=answer, **values)
    return made.row()


def error(index: int, sample: int, kind: str = "image_not_found") -> Json:
    return ErrorRow(index, sample, kind, "look").row()


def test_counts() -> None:
    tally = tally_rows(
        [row(0, 0, "x"), row(0, 1, " ", finish_reason="length", completion_tokens=7), row(2, 0, "y")],
        [error(1, 0), error(1, 1), error(2, 1, "engine_crash")],
        ValidationConfig(),
    )
    assert (tally.samples, tally.errors, tally.empty, tally.truncated) == (3, 3, 1, 1)
    assert tally.errors_by_kind == {"image_not_found": 2, "engine_crash": 1}
    assert (tally.prompt_tokens, tally.completion_tokens) == (15, 13)
    assert tally.completion_lengths == {3: 2, 6: 1}
    assert tally.prompt_lengths == {4: 3}
    assert (tally.graded, tally.records_graded, tally.format_errors) == (0, 0, 0)


def test_grades_pass_at_k_and_majority() -> None:
    rows = [
        *(row(0, i, text, label="7") for i, text in enumerate(["7", "is 7.0", "8", "9"])),
        *(row(1, i, text, label="1") for i, text in enumerate(["2", "2", "1", "3"])),
        *(row(2, i, "4") for i in range(4)),
    ]
    tally = tally_rows(rows, [], NUMBER)
    assert (tally.graded, tally.correct, tally.records_graded, tally.majority_correct) == (8, 3, 2, 1)
    assert tally.pass_at == pytest.approx({1: 0.5 + 0.25, 2: (1 - 1 / 6) + 0.5, 3: 1 + 0.75, 4: 2.0})


def test_a_graded_records_errors_are_wrong_in_pass_at_k() -> None:
    tally = tally_rows([row(0, 0, "1", label=1)], [error(0, 1), error(0, 2)], NUMBER)
    assert (tally.graded, tally.correct) == (1, 1)
    assert tally.pass_at == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})


def test_answers_count_as_format_errors_where_there_are_none() -> None:
    rows = [row(0, 0, "x", "x", answer="x"), row(0, 1, "x", "x"), row(0, 2, "<answer></answer>", "x", answer="")]
    tally = tally_rows(rows, [], PAR)
    assert (tally.format_errors, tally.graded, tally.correct) == (2, 3, 1)


@pytest.mark.parametrize("second", [(0, 0), (0, 1)])
def test_rows_out_of_order_or_twice_are_refused(second: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="in order"):
        tally_rows([row(0, 1, "a"), row(*second, "b")], [], NUMBER)
    with pytest.raises(ValueError, match="in order"):
        tally_rows([row(0, 1, "a")], [error(0, 1)], NUMBER)


def test_tallies_add_up_and_survive_json() -> None:
    rows = [row(i, s, str(s), label="1", completion_tokens=i * 9 + s) for i in range(6) for s in range(3)]
    whole, summed = tally_rows(rows, [error(6, 0)], NUMBER), Tally()
    for part in (tally_rows(rows[:9], [], NUMBER), tally_rows(rows[9:], [error(6, 0)], NUMBER)):
        summed.add(Tally.model_validate(orjson.loads(part.model_dump_json())))
    assert summed.pass_at == pytest.approx(whole.pass_at)
    assert summed.model_copy(update={"pass_at": whole.pass_at}) == whole


def test_length_bins() -> None:
    assert [length_bin(t) for t in (0, 1, 3, 4, 5, 6, 8, 11, 12, 1000)] == [0, 1, 3, 4, 4, 6, 8, 8, 12, 768]


def test_thresholds_do_not_change_the_grading_key() -> None:
    assert grading_key(PAR) == grading_key(PAR.model_copy(update={"min_accuracy": 0.5}))
    assert grading_key(PAR) != grading_key(NUMBER)


def _shard(storage: LocalStorage, rows: list[Json], validation: ValidationConfig, folder: str = "s") -> ShardManifest:
    files = []
    for name, content in (("00000.jsonl", rows), ("00000.errors.jsonl", [error(1, 0)])):
        path = f"{folder}/{name}"
        write(storage, path, b"".join(orjson.dumps(r) + b"\n" for r in content))
        size = storage.size(path) or 0
        files.append(FileManifest(name=name, bytes=size, sha256=sha256_of(storage, path), rows=len(content)))
    tally = tally_rows(rows, [error(1, 0)], validation)
    tally.cached_tokens = 11
    grading = grading_key(validation)
    return ShardManifest(
        key="k", index=0, start=0, records=2, n=1, sha256="", data=files[0], errors=files[1], tally=tally,
        grading=grading,
    )  # fmt: skip


def test_tally_file_grades_again(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    manifest = _shard(storage, [row(0, 0, "7", label="7.0")], ValidationConfig(label_match="exact"))
    assert manifest.tally.correct == 0
    again = tally_file(storage, "s", manifest, NUMBER)
    assert (again.correct, again.cached_tokens, again.errors) == (1, 11, 1)


def test_regrade_rewrites_the_answers_beside_the_old_file(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    rows = [row(0, 0, "so <answer>B</answer>", label="B", extra={"kept": 1.5}), row(2, 0, "B", label="B")]
    old = _shard(storage, rows, ValidationConfig(label_match="exact"))
    new = regrade(storage, "s", old, PAR)
    assert new.data.name != old.data.name
    assert sha256_of(storage, "s/00000.jsonl") == old.data.sha256
    written = [orjson.loads(line) for line in storage.read(f"s/{new.data.name}").splitlines()]
    assert written == [rows[0] | {"answer": "B"}, rows[1]]
    assert list(written[0]) == list(rows[0])
    assert new.data.sha256 == sha256_of(storage, f"s/{new.data.name}")
    assert (new.data.bytes, new.data.rows) == (storage.size(f"s/{new.data.name}"), 2)
    assert (new.tally.correct, new.tally.format_errors, new.grading) == (1, 1, grading_key(PAR))


def test_regrade_keeps_the_file_where_no_answer_changes(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    old = _shard(storage, [row(0, 0, "7", label="7.0")], ValidationConfig(label_match="exact"))
    new = regrade(storage, "s", old, NUMBER)
    assert new.data == old.data
    assert new.tally.correct == 1
    assert storage.names("s") == ["00000.errors.jsonl", "00000.jsonl"]
    assert regrade(storage, "s", new, NUMBER) is new


def test_regrade_there_and_back_again_never_loses_the_rows(tmp_path: Path) -> None:
    """By NUMBER no answer changes, so the file keeps the name that it got by PAR: which must not be taken for new."""
    storage = LocalStorage(str(tmp_path))
    store = ShardStore(storage, "k")
    rows = [row(0, 0, "so <answer>7</answer>", label="7")]
    manifest = _shard(storage, rows, ValidationConfig(), folder=store.folder)
    number = PAR.model_copy(update={"label_match": "number"})
    pattern = ValidationConfig(answer_format="regex", answer_pattern="[a-z]+")
    for validation in (PAR, number, PAR, number, pattern, PAR, pattern):
        graded = regrade(storage, store.folder, manifest, validation)
        store.replace_manifest(manifest, graded)
        manifest = graded
        assert store.damage(manifest) is None
        (written,) = (orjson.loads(line) for line in storage.read(f"{store.folder}/{manifest.data.name}").splitlines())
        assert written["predict"] == rows[0]["predict"]
        assert len(storage.names(store.folder)) == 3
