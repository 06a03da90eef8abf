"""The pool and the feeder with engines that die, hang or never start. After each fault every row is there, once.

Both pools pass it: engines as local processes, and on a Ray cluster of three nodes. A start costs seconds there: some
tests run on Ray only with `--all-on-ray`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.engines.pool import ShardFailedError
from tasks.errors import RunError
from tests import pools
from tests.pools import FakeRun, all_places
from tests.processes import engines_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    both = metafunc.config.getoption("--all-on-ray") or metafunc.definition.get_closest_marker("ray")
    metafunc.parametrize("each_pool", ["local", "ray"] if both else ["local"], indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def each_pool(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests with one kind of pool, then all with the other, over one connection to the cluster."""
    if request.param == "local":
        yield
        return
    import ray

    pools.RAY_ADDRESS = request.getfixturevalue("ray_cluster").address
    ray.init(address=pools.RAY_ADDRESS, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()
        pools.RAY_ADDRESS = None


def prompts(count: int, **special: str) -> list[str]:
    made = [f"prompt {i}" for i in range(count)]
    for place, text in special.items():
        made[int(place.removeprefix("at"))] = text
    return made


@pytest.mark.ray
def test_all_rows_are_made_in_order(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(230), replicas=2, sampling={"n": 3})
    manifests = run.run()
    assert [m.index for m in manifests] == [0, 1, 2, 3, 4]
    assert [(r["original_index"], r["sample_id"]) for r in run.rows()] == all_places(230, 3)
    assert sum(engine.tokens for engine in run.view.engines) == 230 * 3, "the last second's are told too"
    assert run.rows()[7]["predict"] == "prompt 2 1"
    assert not list(Path(run.config.output.path).rglob("chunk-*"))


def test_a_record_that_cannot_be_made_is_an_error_row(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(60, at7="TOO LONG", at8=" "), sampling={"n": 2})
    run.run()
    assert [(r["original_index"], r["error"]) for r in run.rows(errors=True)] == [
        (7, "prompt_too_long"),
        (7, "prompt_too_long"),
        (8, "empty_prompt"),
        (8, "empty_prompt"),
    ]
    assert run.places() == all_places(60, 2)


@pytest.mark.parametrize("kind", ["POISON", "BROKEN"])
def test_poison_is_found_and_everything_else_completes(tmp_path: Path, kind: str) -> None:
    run = FakeRun.make(tmp_path, prompts(300, at130=kind), engine={"max_num_seqs": 32, "extra": {"delay": 0.05}})
    run.run()
    (error,) = run.rows(errors=True)
    assert (error["original_index"], error["error"]) == (130, "engine_crash")
    assert run.places() == all_places(300, 1)
    # a window of 64 records: log2(64) steps, the first crash and the last
    assert run.view.engines[0].restarts <= 8


@pytest.mark.ray
def test_a_hung_engine_is_ended_and_restarted_with_gentler_settings(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(40, at20="HANG"), engine={"max_num_seqs": 2, "stall_timeout": 1.5})
    run.run()
    (error,) = run.rows(errors=True)
    assert (error["original_index"], error["error"]) == (20, "engine_stall")
    assert run.places() == all_places(40, 1)
    assert "made no token for 1.5 s" in run.view.steps[0]
    assert "max_num_seqs 1," in run.view.steps[0]


@pytest.mark.ray
def test_an_engine_that_is_stopped_is_ended(tmp_path: Path) -> None:
    """SIGSTOP: the process is there, answers nothing, and no handler of its own can run."""
    run = FakeRun.make(
        tmp_path, prompts(100), engine={"max_num_seqs": 4, "stall_timeout": 2.0, "extra": {"delay": 0.1}}
    )
    _after_samples(run, 10, signal.SIGSTOP)
    run.run()
    assert run.places() == all_places(100, 1)
    assert not run.rows(errors=True)


@pytest.mark.ray
def test_kill_9_of_an_engine_loses_only_what_was_in_flight(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(200), replicas=2, engine={"max_num_seqs": 4, "extra": {"delay": 0.2}})
    _after_samples(run, 10, signal.SIGKILL)
    run.run()
    assert run.places() == all_places(200, 1)
    assert sum(e.restarts for e in run.view.engines) == 1
    assert not run.rows(errors=True)


def test_a_run_that_is_stopped_writes_what_is_made(tmp_path: Path) -> None:
    engine = {"max_num_seqs": 4, "extra": {"delay": 0.1}}
    output, dataset = {"chunk_seconds": 600}, {"shard_size": 1000}
    run = FakeRun.make(tmp_path, prompts(600), engine=engine, output=output, dataset=dataset)

    def run_until_closed() -> None:
        with pytest.raises(ShardFailedError):
            run.run()

    thread = threading.Thread(target=run_until_closed)
    thread.start()
    while run.view.samples < 20:
        time.sleep(0.02)
    assert not list((tmp_path / "out").rglob("chunk-*"))
    run.pool.close()
    thread.join()
    chunks = list((tmp_path / "out").rglob("chunk-*"))
    assert sum(len(chunk.read_bytes().splitlines()) for chunk in chunks) >= 20


@pytest.mark.parametrize("fault", ["fail_slots", "broken"])
def test_an_engine_that_never_works_is_given_up_and_the_others_go_on(tmp_path: Path, fault: str) -> None:
    """`broken`: it starts, and dies of each request; no record is blamed for that."""
    run = FakeRun.make(
        tmp_path, prompts(200), replicas=2, engine={"extra": {fault: [1], "delay": 0.3}, "max_num_seqs": 4}
    )
    run.run()
    assert run.places() == all_places(200, 1)
    assert not run.rows(errors=True)
    assert all("engine 1 ended" in step for step in run.view.steps)
    assert "given up" in run.view.steps[-1]


def test_with_no_engine_left_the_run_fails_and_blames_no_record(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(20), engine={"extra": {"broken": [0]}})
    with pytest.raises(RunError, match=r"no engine is left: .*no kernel image"):
        run.run()
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_an_engine_that_cannot_start_fails_the_run_with_its_words(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(10), engine={"extra": {"fail_start": "no such architecture"}})
    with pytest.raises(RunError, match="no such architecture"):
        run.run()


def test_out_of_memory_at_start_is_met_with_gentler_settings(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(10), engine={"extra": {"fail_start": "CUDA out of memory"}})
    with pytest.raises(RunError, match="out of memory"):
        run.run()
    assert "gpu_memory_utilization 0.8" in run.view.steps[0]
    assert "gpu_memory_utilization 0.7" in run.view.steps[1]


def test_out_of_memory_under_way_is_met_with_gentler_settings(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(200), engine={"max_num_seqs": 32, "extra": {"memory": 20, "delay": 0.05}})
    run.run()
    assert run.places() == all_places(200, 1)
    assert not run.rows(errors=True)
    assert all("CUDA out of memory" in step for step in run.view.steps)
    assert [int(step.split("max_num_seqs ")[1].split(",")[0]) for step in run.view.steps] == [16, 8]


def test_input_that_changes_before_it_is_read_fails_the_shard(tmp_path: Path) -> None:
    run = FakeRun.make(tmp_path, prompts(100))
    path = Path(run.config.dataset.path)
    path.write_bytes(path.read_bytes().replace(b"prompt 99", b"Prompt 99"))
    with pytest.raises(RunError, match="changed"):
        run.run()


@pytest.mark.ray
def test_a_torn_chunk_is_owed_again(tmp_path: Path) -> None:
    texts = prompts(50, at49="GATE")  # until then the shard cannot be finished
    run = FakeRun.make(tmp_path, texts, sampling={"n": 2}, engine={"extra": {"delay": 0.1}, "max_num_seqs": 10})

    def run_until_closed() -> None:
        with pytest.raises(ShardFailedError):
            run.run()

    thread = threading.Thread(target=run_until_closed)
    thread.start()
    chunks = Path(run.config.output.path, "shards/key/00000")
    while not list(chunks.glob("chunk-*")):
        time.sleep(0.02)
    run.pool.close()
    thread.join()
    torn = sorted(chunks.glob("chunk-*"))[0]
    torn.write_bytes(torn.read_bytes()[:-20])
    Path(run.config.output.path, "gate").touch()
    again = FakeRun.make(tmp_path, texts, sampling={"n": 2})
    (manifest,) = again.run()
    assert again.places() == all_places(50, 2)
    assert 0 < manifest.resumed_samples < 100
    assert again.view.resumed == manifest.resumed_samples


@pytest.mark.ray
def test_engines_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """kill -9 of the flow: nothing of it is left within seconds."""
    script = (
        "from tests import pools; from pathlib import Path;"
        f"pools.RAY_ADDRESS = {pools.RAY_ADDRESS!r};"
        f"pools.FakeRun.make(Path({str(tmp_path)!r}), ['SLOW'] * 200, engine={{'max_num_seqs': 1}}).run()"
    )
    flow = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not engines_of(tmp_path / "out"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.0)
    engines = engines_of(tmp_path / "out") + _children(flow.pid)
    flow.kill()
    flow.wait()
    while any(_alive(pid) for pid in engines):
        assert time.monotonic() < deadline + 30
        time.sleep(0.1)


def _after_samples(run: FakeRun, samples: int, signum: int) -> None:
    """Signal the first running engine once so many samples are made."""

    def wait_and_signal() -> None:
        while run.view.samples < samples:
            time.sleep(0.02)
        os.kill(engines_of(run.folder / "out")[0], signum)

    threading.Thread(target=wait_and_signal, daemon=True).start()


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
