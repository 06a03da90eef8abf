"""Disks that are full, read-only or gone, and files that somebody changed: told, and repaired by making just that."""

from __future__ import annotations

import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from tasks.engines.pool import ShardFailedError
from tasks.records import ShardManifest
from tests import pools
from tests.flow_runs import wait_until
from tests.pools import FAKE, FakeRun, all_places
from tests.processes import engines_of

RECORDS = 150
LONG = "x" * 2000


class Disk:
    """A folder whose `out` has room for a part of the output: a small disk of its own, or, where mounting is not
    permitted, engines that may write small files only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.out.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(self.out)]
        self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.words = "No space left on device" if self.mounted else "File too large"
        if not self.mounted:
            pools.FAKE = ("prlimit", "--fsize=20000:unlimited", *FAKE)

    def mend(self) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,size=32m", str(self.out)], check=True)
            return
        pools.FAKE = FAKE
        for pid in engines_of(self.folder / "out"):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        pools.FAKE = FAKE
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.out)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    small = Disk(tmp_path)
    yield small
    small.close()


def long_run(folder: Path, chunk_seconds: float = 0.2, delay: float = 0.05) -> FakeRun:
    engine = {"max_num_seqs": 16, "extra": {"delay": delay}}
    return FakeRun.make(
        folder, [f"{i} {LONG}" for i in range(RECORDS)], engine=engine, output={"chunk_seconds": chunk_seconds}
    )


def test_a_full_disk_fails_the_run_in_a_line_and_the_next_run_goes_on(disk: Disk) -> None:
    run = long_run(disk.folder)
    with pytest.raises(ShardFailedError, match=disk.words) as raised:
        run.run()
    assert "\n" not in str(raised.value)
    assert not run.view.engines[0].restarts
    disk.mend()
    again = long_run(disk.folder)
    manifests = again.run()
    assert not disk.mounted or sum(manifest.resumed_samples for manifest in manifests) > 0
    assert again.places() == all_places(RECORDS, 1)
    assert not list(disk.out.rglob(".tmp-*"))


def test_a_disk_that_is_mended_in_time_costs_nothing(disk: Disk) -> None:
    run = long_run(disk.folder, chunk_seconds=1.5)
    done = in_background(run.run)
    wait_until(lambda: any("trying again" in step for step in run.view.steps), 60)
    disk.mend()
    (manifests,) = done()
    assert len(manifests) == RECORDS // 50
    assert run.places() == all_places(RECORDS, 1)
    assert run.view.samples == RECORDS


def test_an_output_folder_deleted_under_way_is_made_again(tmp_path: Path) -> None:
    run = long_run(tmp_path, delay=0.3)  # a shard after the other, each with some chunks
    done = in_background(lambda: [patiently(run, shard.index) for shard in run.shards])
    wait_until(lambda: list((tmp_path / "out").rglob("chunk-*")), 60, every=0.01)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    done()
    run.pool.close()
    assert run.places() == all_places(RECORDS, 1)


def test_a_record_that_changes_between_two_runs_is_made_again_and_no_other(tmp_path: Path) -> None:
    run = long_run(tmp_path, delay=0.3)  # a shard takes longer than a chunk

    def run_until_closed() -> None:
        with pytest.raises(ShardFailedError):
            run.run()

    stopped = in_background(run_until_closed)
    wait_until(lambda: list((tmp_path / "out").rglob("chunk-*")), 60, every=0.01)
    run.pool.close()
    stopped()
    chunks = min(path.parent for path in (tmp_path / "out").rglob("chunk-*"))  # the next shard may have some too
    held = [orjson.loads(line)["row"] for path in chunks.glob("chunk-*") for line in path.read_bytes().splitlines()]
    prompts = [f"{i} {LONG}" for i in range(RECORDS)]
    prompts[held[0]["original_index"]] = "another prompt"
    again = FakeRun.make(tmp_path, prompts, engine={"max_num_seqs": 16})
    manifests = again.run()
    assert manifests[held[0]["original_index"] // 50].resumed_samples == len(held) - 1
    assert [row["prompt"] for row in again.rows()] == prompts


def patiently(run: FakeRun, index: int) -> ShardManifest:
    """As Prefect does: a shard that failed is tried again."""
    for _ in range(5):
        try:
            return run.pool.generate(run.shards[index])
        except ShardFailedError:
            time.sleep(0.1)
    raise AssertionError("never made")


def in_background(work: Callable[[], object]) -> Callable[[], list[object]]:
    """Start the work; call what is returned to wait for its result."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()

    def wait() -> list[object]:
        thread.join(120)
        assert not thread.is_alive()
        return results

    return wait
