"""What the command line says of a run that cannot go on: one line, status 1, and no traceback."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import terminal
from tasks.config import GenerateConfig
from tests.conftest import ROOT


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to, not by root either."""
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield Path("/proc")  # where mounting is not permitted
        return
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def config(output: Path) -> GenerateConfig:
    return GenerateConfig.model_validate(
        {"model": {"source": "m"}, "dataset": {"path": "d"}, "output": {"path": str(output)}}
    )


def test_an_output_folder_that_cannot_be_written_to(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.run_in_terminal(None, config(read_only / "out")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: output.path: {read_only}/out cannot be written to: ")


def test_an_output_folder_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert terminal.run_in_terminal(None, config(tmp_path / "file/out")) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("two\nlines")])
def test_any_error_is_one_line(tmp_path: Path, error: Exception) -> None:
    """In a process of its own: signals and the root logger are set for good."""
    done = subprocess.run([sys.executable, "-c", RAISES, str(tmp_path), repr(error)], capture_output=True, text=True)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()[-1:]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("signum", "before", "status"),
    [(signal.SIGTERM, "SIG_DFL", 130), (signal.SIGHUP, "SIG_DFL", 130), (signal.SIGHUP, "SIG_IGN", 1)],
)
def test_a_closed_terminal_stops_the_run_as_sigterm_does_but_not_under_nohup(
    tmp_path: Path, signum: signal.Signals, before: str, status: int
) -> None:
    program = RAISES.replace("raise ", f"os.kill(os.getpid(), {int(signum)}); time.sleep(0.2); raise ")
    program = f"import signal; signal.signal({int(signum)}, signal.{before})\n{program}"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), "OSError('went on')"], capture_output=True)
    assert done.returncode == status, done.stderr


def test_a_server_that_does_not_answer_does_not_hold_a_stopped_run(tmp_path: Path) -> None:
    """As Prefect waits for a busy server to hear that the run was stopped."""
    waits = "try: os.kill(os.getpid(), 2), time.sleep(9)\n    finally: time.sleep(60)"
    program = RAISES.replace("raise eval(sys.argv[2])", waits)
    program = program.replace("def generate", "terminal.LEAVE_SECONDS = 0.5\ndef generate")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == terminal.STOPPED


RAISES = f"""
import contextlib, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from flows import terminal
from tasks.config import GenerateConfig
terminal.serving = contextlib.nullcontext
def generate(**sections):
    raise eval(sys.argv[2])
places = {{"model": {{"source": "m"}}, "dataset": {{"path": "d"}}, "output": {{"path": sys.argv[1]}}}}
sys.exit(terminal.run_in_terminal(generate, GenerateConfig.model_validate(places)))
"""
