"""The shards' files, one after another, as data.jsonl and errors.jsonl, or in another format that was asked for.

Each shard's file is checked against its manifest on the way (size, rows, sha256); the hash of the merged file is made
in the same pass. Memory stays at a few blocks however large the run is.
"""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from tasks.outputs.formats import SUFFIXES, suffix, write_merged
from tasks.outputs.source import ShardFiles
from tasks.records import FileManifest, ShardManifest, Tally
from tasks.retries import retried
from tasks.storage import Storage, open_storage


class MergedFiles(BaseModel):
    """The merged files, by name relative to the output folder, and the sum of the shards' tallies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: FileManifest
    errors: FileManifest
    tally: Tally


@task(
    name="merge_shards",
    task_run_name="merge_shards",
    description="Merge the shards' files into one of samples and one of errors, checking each against its manifest.",
    tags=["merge"],
    cache_policy=NO_CACHE,
    **retried(3, first_delay=5),
)
def merge_shards(
    output_path: str,
    shards_folder: str,
    manifests: Sequence[ShardManifest],
    file_format: str = "jsonl",
    compression: str | None = None,
) -> MergedFiles:
    """`merge` of the shards in `shards_folder`, relative to the run's output folder."""
    return merge(open_storage(output_path), shards_folder, manifests, file_format, compression)


def merge(
    storage: Storage,
    shards_folder: str,
    manifests: Sequence[ShardManifest],
    file_format: str = "jsonl",
    compression: str | None = None,
) -> MergedFiles:
    """Write the merged files from the shards' files, in the order of `manifests`; those of other formats go.

    Raises RunError naming a shard's file that is gone or is not what its manifest says; that file is not written then.
    """
    tally = Tally()
    for manifest in manifests:
        tally.add(manifest.tally)
    ending = suffix(file_format, compression)
    data = ShardFiles(storage, shards_folder, [m.data for m in manifests])
    errors = ShardFiles(storage, shards_folder, [m.errors for m in manifests])
    merged = MergedFiles(
        data=write_merged(data, f"data{ending}", compression),
        errors=write_merged(errors, f"errors{ending}", compression),
        tally=tally,
    )
    for name in (f"{kind}{other}" for kind in ("data", "errors") for other in SUFFIXES if other != ending):
        storage.remove(name)
    return merged
