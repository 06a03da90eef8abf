"""Whether the finished dataset is whole, and good enough.

Whole: the manifests prove that every record of the dataset has exactly its n rows, as samples or errors. A run that is
not whole is a RunError. Good enough: the gates of `validation`; a failed one fails the run, the files stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from pydantic import BaseModel, ConfigDict

from tasks.config import ValidationConfig
from tasks.errors import RunError
from tasks.merge_shards import MergedFiles
from tasks.outputs.formats import stored_rows
from tasks.records import DatasetManifest, FileManifest, Shard, ShardManifest, Tally
from tasks.retries import retried
from tasks.storage import Storage, open_storage


class GateFailed(RunError):
    """The dataset is whole and stays where it is, but is not as good as `validation` asks for."""

    def __init__(self, result: ValidationResult) -> None:
        super().__init__("; ".join(gate.line for gate in result.gates if not gate.passed))
        self.result = result


class Gate(BaseModel):
    """One gate: `figure` against `threshold`, both shares from 0 to 1; `line` says it in words."""

    model_config = ConfigDict(frozen=True)

    name: str
    figure: float
    threshold: float
    passed: bool
    line: str


class ValidationResult(BaseModel):
    """The gates, in the order of the config's fields."""

    model_config = ConfigDict(frozen=True)

    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)

    def require(self) -> None:
        """Raise GateFailed, one line naming each failed gate's figure and threshold."""
        if not self.passed:
            raise GateFailed(self)


@task(
    name="validate_output",
    task_run_name="validate_output",
    description="Prove that every record has all its samples, and hold the dataset against its gates.",
    tags=["validate"],
    cache_policy=NO_CACHE,
    **retried(2, first_delay=5),
)
def validate_output(
    output_path: str,
    dataset: DatasetManifest,
    manifests: Sequence[ShardManifest],
    merged: MergedFiles,
    key: str,
    n: int,
    validation: ValidationConfig,
) -> ValidationResult:
    """`validate`, with the gates as a table in Prefect's UI. Raises GateFailed too, with the result."""
    result = validate(open_storage(output_path), dataset, manifests, merged, key, n, validation)
    if TaskRunContext.get() is not None:
        create_table_artifact(_table(result), key="validation", description="Gates of the finished dataset")
    result.require()
    return result


def validate(
    storage: Storage,
    dataset: DatasetManifest,
    manifests: Sequence[ShardManifest],
    merged: MergedFiles,
    key: str,
    n: int,
    validation: ValidationConfig,
) -> ValidationResult:
    """Prove the run whole, then measure the gates; a failed gate is in the result, nothing is raised for it.

    Raises RunError naming the shard or file where records * n rows are not accounted for.
    """
    _prove_covered(dataset)
    if missing := sorted({shard.index for shard in dataset.shards} - {m.index for m in manifests}):
        raise RunError(f"shard {missing[0]:05d} has no manifest ({len(missing)} have none); run again to generate them")
    if len(manifests) != len(dataset.shards):
        raise RunError(f"{len(manifests)} manifests for {len(dataset.shards)} shards; run again to merge again")
    for shard, manifest in zip(dataset.shards, manifests, strict=True):
        _prove_shard(shard, manifest, key, n)
    for name in ("data", "errors"):
        _prove_merged(storage, [getattr(m, name) for m in manifests], getattr(merged, name))
    return ValidationResult(gates=tuple(gates(merged.tally, validation, merged.errors.name)))


def gates(tally: Tally, validation: ValidationConfig, errors: str = "errors.jsonl") -> list[Gate]:
    """The gates that apply: format and accuracy only where `validation` asks for them."""
    samples, all_rows = tally.samples, tally.samples + tally.errors
    measured = [
        _most("max_error_rate", tally.errors, all_rows, validation, f"samples are errors: see {errors}"),
        _most("max_truncated_rate", tally.truncated, samples, validation, "samples were cut at max_tokens"),
        _most("max_empty_rate", tally.empty, samples, validation, "samples are empty"),
    ]
    if validation.answer_format != "none":
        what = f"samples break answer_format '{validation.answer_format}'"
        measured.append(_most("max_format_error_rate", tally.format_errors, samples, validation, what))
    if validation.label_match != "none":
        measured.append(_accuracy(tally, validation))
    return measured


def _most(name: str, count: int, of: int, validation: ValidationConfig, what: str) -> Gate:
    threshold: float = getattr(validation, name)
    figure = count / of if of else 0.0
    line = f"validation.{name}: {count} of {of} {what}, {_percent(figure)}, at most {_percent(threshold)} may be"
    return Gate(name=name, figure=figure, threshold=threshold, passed=figure <= threshold, line=line)


def _accuracy(tally: Tally, validation: ValidationConfig) -> Gate:
    threshold = validation.min_accuracy
    figure = tally.correct / tally.graded if tally.graded else 0.0
    what = f"{tally.correct} of {tally.graded} graded samples are right, {_percent(figure)}"
    if not tally.graded:
        what = "no sample has a label to compare with (see dataset.label_field)"
    line = f"validation.min_accuracy: {what}, at least {_percent(threshold)} must be"
    return Gate(name="min_accuracy", figure=figure, threshold=threshold, passed=figure >= threshold, line=line)


def _percent(share: float) -> str:
    return f"{100 * share:.6g}%"


def _prove_covered(dataset: DatasetManifest) -> None:
    """The dataset's shards are contiguous from 0 and hold all its records."""
    at = 0
    for number, shard in enumerate(dataset.shards):
        if (shard.index, shard.start) != (number, at):
            raise RunError(
                f"shard {shard.name} starts at record {shard.start}, not {at}: run again to split the dataset again"
            )
        at += shard.records
    if at != dataset.records:
        raise RunError(f"the shards hold {at} records of {dataset.records}: run again to split the dataset again")


def _prove_shard(shard: Shard, manifest: ShardManifest, key: str, n: int) -> None:
    """The manifest is of this shard's records and these settings, and each of its samples has its one row."""
    tally = manifest.tally
    checks: dict[str, tuple[object, object]] = {
        "key": (manifest.key, key),
        "n": (manifest.n, n),
        "index": (manifest.index, shard.index),
        "start": (manifest.start, shard.start),
        "records": (manifest.records, shard.records),
        "sha256": (manifest.sha256, shard.sha256),
        "rows": (tally.samples + tally.errors, shard.records * n),
        "data.rows": (manifest.data.rows, tally.samples),
        "errors.rows": (manifest.errors.rows, tally.errors),
    }
    for name, (found, expected) in checks.items():
        if found != expected:
            raise RunError(f"shard {shard.name}: {name} is {found}, not {expected}; remove its manifest and run again")


def _prove_merged(storage: Storage, parts: Sequence[FileManifest], merged: FileManifest) -> None:
    """The merged file has the rows of its parts (as plain text their bytes too), in the manifests and where it lies."""
    path = f"{storage.root}/{merged.name}"
    facts: list[tuple[str, Callable[[FileManifest], int]]] = [("rows", lambda f: f.rows)]
    if merged.name.endswith(".jsonl"):
        facts.append(("bytes", lambda f: f.bytes))
    for what, fact in facts:
        if fact(merged) != (expected := sum(map(fact, parts))):
            raise RunError(f"{path} has {fact(merged)} {what}, its shards {expected}; run again to merge again")
    if (size := storage.size(merged.name)) != merged.bytes:
        raise RunError(f"{path} has {size or 0} bytes, not the {merged.bytes} written; run again to merge again")
    if (rows := stored_rows(storage, merged.name)) not in (None, merged.rows):
        raise RunError(f"{path} holds {rows} rows, not the {merged.rows} written; run again to merge again")


def _table(result: ValidationResult) -> list[dict[str, str]]:
    return [
        {
            "gate": gate.name,
            "figure": _percent(gate.figure),
            "threshold": _percent(gate.threshold),
            "passed": "yes" if gate.passed else "no",
        }
        for gate in result.gates
    ]
