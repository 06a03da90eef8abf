from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.config import ValidationConfig
from tasks.errors import RunError
from tasks.merge_shards import MergedFiles, merge
from tasks.records import DatasetManifest, ShardManifest, Tally
from tasks.storage import LocalStorage
from tasks.validate_output import GateFailed, ValidationResult, gates, validate, validate_output
from tests.shards import KEY, dataset_of, finish_all

N = 2
LOOSE = ValidationConfig(max_error_rate=1.0, answer_format="par", label_match="exact")


class Finished:
    """A finished and merged run of 100 records."""

    def __init__(self, folder: Path) -> None:
        self.storage = LocalStorage(str(folder))
        self.dataset = dataset_of(100, 30)
        self.manifests = finish_all(self.storage, self.dataset, N, LOOSE)
        self.merged = merge(self.storage, f"shards/{KEY}", self.manifests)

    def validate(self, validation: ValidationConfig = LOOSE, **other: Any) -> ValidationResult:
        args: dict[str, Any] = {
            "dataset": self.dataset,
            "manifests": self.manifests,
            "merged": self.merged,
            "key": KEY,
            "n": N,
            **other,
        }
        return validate(self.storage, validation=validation, **args)


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return Finished(tmp_path)


def test_a_whole_run_passes(finished: Finished) -> None:
    result = finished.validate()
    assert result.passed
    result.require()
    assert [gate.name for gate in result.gates] == [
        "max_error_rate",
        "max_truncated_rate",
        "max_empty_rate",
        "max_format_error_rate",
        "min_accuracy",
    ]


def _change_shard(shard: ShardManifest, **fields: Any) -> ShardManifest:
    return shard.model_copy(update=fields)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"key": "other"}, "key is other"),
        ({"n": 3}, "n is 3, not 2"),
        ({"start": 31}, "start is 31, not 30"),
        ({"records": 29}, "records is 29, not 30"),
        ({"sha256": "x"}, "sha256 is x"),
        ({"tally": Tally(samples=59)}, "rows is 59, not 60"),
        ({"tally": Tally(samples=30, errors=30)}, r"data\.rows is 58, not 30"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_named(finished: Finished, fields: dict[str, Any], what: str) -> None:
    wrong = _change_shard(finished.manifests[1], **fields)
    manifests = [finished.manifests[0], wrong, *finished.manifests[2:]]
    with pytest.raises(RunError, match=f"shard 00001: {what}"):
        finished.validate(manifests=manifests)


def test_a_missing_manifest_is_named(finished: Finished) -> None:
    with pytest.raises(RunError, match="shard 00002 has no manifest"):
        finished.validate(manifests=[*finished.manifests[:2], finished.manifests[3]])
    with pytest.raises(RunError, match="5 manifests for 4 shards"):
        finished.validate(manifests=[*finished.manifests, finished.manifests[3]])


def test_shards_must_cover_the_dataset(finished: Finished) -> None:
    shards = finished.dataset.shards

    def without(*dropped: int, records: int) -> DatasetManifest:
        kept = tuple(shard for shard in shards if shard.index not in dropped)
        return finished.dataset.model_copy(update={"shards": kept, "records": records})

    with pytest.raises(RunError, match="shard 00002 starts at record 60, not 30"):
        finished.validate(dataset=without(1, records=70))
    with pytest.raises(RunError, match="the shards hold 90 records of 100"):
        finished.validate(dataset=without(3, records=100), manifests=finished.manifests[:3])


@pytest.mark.parametrize("what", ["rows", "bytes"])
def test_the_merged_file_must_be_the_sum(finished: Finished, what: str) -> None:
    data = finished.merged.data.model_copy(update={what: 7})
    merged = MergedFiles(data=data, errors=finished.merged.errors, tally=finished.merged.tally)
    with pytest.raises(RunError, match=rf"data\.jsonl has 7 {what}"):
        finished.validate(merged=merged)


def test_the_merged_file_must_be_there(finished: Finished) -> None:
    Path(finished.storage.root, "data.jsonl").write_bytes(b"short\n")
    with pytest.raises(RunError, match=r"data\.jsonl has 6 bytes"):
        finished.validate()


@pytest.mark.parametrize(
    ("threshold", "line"),
    [
        ({"max_error_rate": 0.01}, "max_error_rate: 4 of 200 samples are errors: see errors.jsonl, 2%, at most 1% may"),
        ({"max_truncated_rate": 0.1}, "max_truncated_rate: 20 of 196 samples were cut at max_tokens, 10.2041%"),
        ({"min_accuracy": 0.6}, "min_accuracy: 98 of 196 graded samples are right, 50%, at least 60% must be"),
    ],
)
def test_a_failed_gate_names_figure_and_threshold(finished: Finished, threshold: dict[str, float], line: str) -> None:
    result = finished.validate(LOOSE.model_copy(update=threshold))
    assert [gate.name for gate in result.gates if not gate.passed] == list(threshold)
    with pytest.raises(GateFailed) as raised:
        result.require()
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert Path(finished.storage.root, "data.jsonl").exists()


def test_gates_of_answers_and_emptiness() -> None:
    tally = Tally(samples=10, empty=2, format_errors=3)
    strict = ValidationConfig(
        max_empty_rate=0.1, answer_format="par", max_format_error_rate=0.2, label_match="exact", min_accuracy=0.5
    )
    failed = {gate.name: gate for gate in gates(tally, strict) if not gate.passed}
    assert set(failed) == {"max_empty_rate", "max_format_error_rate", "min_accuracy"}
    assert "break answer_format 'par'" in failed["max_format_error_rate"].line
    assert "no sample has a label" in failed["min_accuracy"].line


def test_gates_that_do_not_apply_are_left_out() -> None:
    assert [gate.name for gate in gates(Tally(), ValidationConfig())] == [
        "max_error_rate",
        "max_truncated_rate",
        "max_empty_rate",
    ]


def test_a_figure_at_its_threshold_passes() -> None:
    assert all(gate.passed for gate in gates(Tally(samples=9, errors=1), ValidationConfig(max_error_rate=0.1)))


def test_the_task_validates_by_the_folders_path(finished: Finished) -> None:
    f = finished
    result = validate_output.fn(f.storage.root, f.dataset, f.manifests, f.merged, KEY, N, LOOSE)
    assert result.passed
