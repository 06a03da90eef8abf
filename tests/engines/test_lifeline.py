"""Engines end with what started them, and leave no shared memory behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.engines import lifeline
from tests.flow_runs import wait_until

ENGINE = """
import time
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=1 << 20)
resource_tracker.unregister(memory._name, "shared_memory")  # as when the tracker is killed too
print(memory._name, flush=True)
time.sleep(600)
"""


def start_engine() -> tuple[subprocess.Popen[bytes], Path]:
    engine = subprocess.Popen([sys.executable, "-c", ENGINE], stdout=subprocess.PIPE, start_new_session=True)
    assert engine.stdout is not None
    memory = Path("/dev/shm", engine.stdout.readline().decode().strip().lstrip("/"))
    assert memory.exists()
    return engine, memory


def test_an_engine_that_is_ended_leaves_no_shared_memory() -> None:
    engine, memory = start_engine()
    lifeline.end_group(engine.pid, 0.1, engine)
    assert engine.returncode == -signal.SIGTERM
    assert not memory.exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_keeper_ends_what_is_left_even_when_it_is_stopped(stopped: bool) -> None:
    keeper = lifeline.Keeper()
    engine, memory = start_engine()
    keeper.watch(engine.pid)
    if stopped:
        os.kill(engine.pid, signal.SIGSTOP)
    threading.Thread(target=engine.wait).start()
    keeper.close()  # what its input's end means, however it comes
    assert engine.wait(10) in (-signal.SIGTERM, -signal.SIGKILL)
    wait_until(lambda: not memory.exists(), 10)


def test_a_model_in_shared_memory_is_left_alone(tmp_path: Path) -> None:
    model = Path("/dev/shm", f"weights-{os.getpid()}.safetensors")
    model.write_bytes(bytes(4096))
    try:
        reading = "import mmap, sys, time; m = mmap.mmap(open(sys.argv[1], 'r+b').fileno(), 0); print('', flush=True); "
        reading += "time.sleep(600)"
        engine = subprocess.Popen(
            [sys.executable, "-c", reading, str(model)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert engine.stdout is not None
        engine.stdout.readline()
        lifeline.end_group(engine.pid, 0.1, engine)
        assert model.exists()
    finally:
        model.unlink()


def test_the_keeper_leaves_alone_what_has_been_forgotten() -> None:
    keeper = lifeline.Keeper()
    engine, memory = start_engine()
    keeper.watch(engine.pid)
    keeper.forget(engine.pid)
    keeper.close()
    assert engine.poll() is None
    lifeline.end_group(engine.pid, 0.1, engine)
    assert not memory.exists()
