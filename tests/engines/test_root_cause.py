"""The cause of an engine's end is found in the log where vLLM's front end only points at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.config import EngineConfig
from tasks.engines.gentler import gentler, is_out_of_memory

POINTS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
FREE = (
    "Free memory on device cuda:0 (58.68/79.18 GiB) on startup is less than desired GPU memory utilization "
    "(0.99, 78.39 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
LOG = f"""(EngineCore pid=71) ERROR 11-25 09:20:11 [core.py:1044] EngineCore failed to start.
(EngineCore pid=71) ERROR 11-25 09:20:11 [core.py:1044] Traceback (most recent call last):
(EngineCore pid=71) ERROR 11-25 09:20:11 [core.py:1044] ValueError: {FREE}
(EngineCore pid=71) Exception: WorkerProc initialization failed due to an exception in a background process.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
ConnectionResetError: [Errno 104] Connection reset by peer
"""
KILLED = """(EngineCore pid=33) ERROR Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down
(Worker_TP0 pid=34) INFO 11-26 03:46:45 [multiproc_executor.py:843] Parent process exited, terminating worker queues
(EngineCore pid=33) ERROR 11-26 03:46:54 [core.py:1512] RuntimeError: cancelled
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""
WORKER = """(Worker_PP1 pid=56) ERROR 11-26 02:35:38 [executor.py:1063]     assert self.intermediate_tensors is not None
(Worker_PP1 pid=56) ERROR 11-26 02:35:38 [executor.py:1063] AssertionError
(EngineCore pid=55) ERROR 11-26 02:35:38 [core.py:1512] KeyError: 'first-token-a485aaac'
"""
DEAD = "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."


@pytest.mark.parametrize(
    ("before", "log", "words", "told"),
    [
        ("", LOG, POINTS, f"ValueError: {FREE}"),
        ("ValueError: of an earlier start\n", "no exception in here\n", POINTS, POINTS),
        ("", LOG, "ValueError: says all", "ValueError: says all"),
        ("", KILLED, DEAD, "Worker proc VllmWorker-1 died unexpectedly (exit code: -9)\n"),
        ("", WORKER, DEAD, "AssertionError\n"),
        ("", KILLED + WORKER, DEAD, "Worker proc VllmWorker-1 died"),
        ("", "torch.AcceleratorError: CUDA error: an illegal memory access\n", POINTS, "torch.AcceleratorError: CUDA"),
    ],
)
def test_the_logs_cause_is_told(tmp_path: Path, before: str, log: str, words: str, told: str) -> None:
    path = tmp_path / "engine.log"
    path.write_text(before)
    program = (
        "import sys; from tasks.engines.root_cause import log_position, root_cause; since = log_position(); "
        "sys.stderr.write(sys.argv[1]); sys.stderr.flush(); print(root_cause(sys.argv[2], since))"
    )
    with path.open("a") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", program, log, words], stdout=subprocess.PIPE, stderr=stderr, text=True, check=True
        )
    assert done.stdout.startswith(told)


def test_memory_that_others_hold_is_left_to_them_and_nothing_else_changes() -> None:
    assert is_out_of_memory(FREE)
    assert gentler({"max_num_seqs": 64}, {}, EngineConfig(gpu_memory_utilization=0.99), FREE) == {
        "max_num_seqs": 64,
        "gpu_memory_utilization": 0.72,
    }
