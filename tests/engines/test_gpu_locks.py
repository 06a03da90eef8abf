"""No GPU is in two runs' hands. The GPUs' ids are made up: nothing here needs one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.config import EngineConfig
from tasks.engines.devices import _full_name
from tasks.engines.gpu_locks import FOLDER_VARIABLE, SharedGpus, gpus_for
from tasks.errors import RunError
from tests.processes import engines_of


@pytest.fixture(autouse=True)
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,GPU-a,GPU-b")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))


def taken(engine: EngineConfig, owner: str = "runs/a") -> SharedGpus:
    gpus = SharedGpus(engine, owner)
    gpus.take()
    return gpus


def test_a_run_takes_what_is_free_and_what_becomes_free() -> None:
    first = taken(EngineConfig(replicas=3))
    assert first.groups == [["0"], ["1"], ["GPU-a"]]
    second = taken(EngineConfig())
    assert second.groups == [["GPU-b"]]
    first.close()
    second.take()
    assert second.groups == [["GPU-b"], ["0"], ["1"], ["GPU-a"]]


def test_a_replica_has_all_its_gpus_or_none() -> None:
    first = taken(EngineConfig(replicas=1))
    pairs = taken(EngineConfig(tensor_parallel_size=2))
    assert pairs.groups == [["1", "GPU-a"]]
    last = taken(EngineConfig())
    assert last.groups == [["GPU-b"]]  # the odd one was not kept by the run that needs two
    first.close()
    pairs.take()
    assert pairs.groups == [["1", "GPU-a"]]


def test_all_in_use_is_waited_for_or_told(caplog: pytest.LogCaptureFixture) -> None:
    first = taken(EngineConfig(), "runs/first")
    waiting = taken(EngineConfig())
    assert waiting.groups == []
    assert waiting.trouble is None
    assert f"waiting for GPUs: of this machine's 4 GPUs fewer than 1 are free: others are in use by process {os.getpid()} (runs/first)" in caplog.text  # noqa: E501  # fmt: skip
    refused = taken(EngineConfig(wait_for_gpus=False))
    assert refused.trouble is not None
    assert "runs/first" in refused.trouble
    first.close()
    waiting.take()
    assert len(waiting.groups) == 4


def test_too_few_gpus_are_told_before_anything_starts() -> None:
    with pytest.raises(RunError, match=r"3 x 2 .* GPUs are asked for, 4 are there"):
        gpus_for(EngineConfig(replicas=3, tensor_parallel_size=2), "runs/a")


def test_a_killed_runs_gpus_are_free_when_its_engine_is_gone_and_not_before(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.pools import FakeRun;"
        f"FakeRun.make(Path({str(tmp_path)!r}), ['SLOW'] * 200, on_gpus=True, engine={{'max_num_seqs': 1}}).run()"
    )
    run = subprocess.Popen([sys.executable, "-c", script])
    try:
        engine = _wait_for_engine(tmp_path)
        ours = taken(EngineConfig())
        assert ours.groups == [["1"], ["GPU-a"], ["GPU-b"]]
        os.kill(engine, signal.SIGSTOP)  # it stays a while after its run is gone, as one does that frees its memory
    finally:
        run.kill()
        run.wait()
    deadline = time.monotonic() + 30
    while len(ours.groups) < 4:
        ours.take()
        if len(ours.groups) == 4:
            assert not engines_of(tmp_path / "out")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _wait_for_engine(folder: Path) -> int:
    """Its process, once it has the first GPU: what is just being started has its parent's environment for a moment."""
    deadline = time.monotonic() + 60
    while True:
        for pid in engines_of(folder / "out"):
            if b"CUDA_VISIBLE_DEVICES=0\0" in Path(f"/proc/{pid}/environ").read_bytes():
                return pid
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_gpu_has_one_name_however_it_is_asked_for() -> None:
    """CUDA takes the beginning of a UUID too: by another name another run would get the same GPU."""
    uuids = ["GPU-8932f937-d72c", "GPU-11aa22bb-0000"]
    names = {name: _full_name(name, uuids) for name in ("0", "1", "GPU-8932f937", "GPU-", "7", "MIG-1")}
    assert names == {"0": uuids[0], "1": uuids[1], "GPU-8932f937": uuids[0], "GPU-": "GPU-", "7": "7", "MIG-1": "MIG-1"}
