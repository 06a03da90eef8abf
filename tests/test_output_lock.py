"""One run at a time in an output folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import RunError
from tasks.output_lock import output_lock

HOLD = """
import sys
from tasks.output_lock import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_while_the_first_lives_and_takes_over_after_it_died(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another run"), output_lock(folder):
            pass
        holder.kill()
        holder.wait()
        with output_lock(folder):
            pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), output_lock(str(tmp_path / "file/out")):
        pass


def test_what_a_killed_run_was_writing_is_cleared(tmp_path: Path) -> None:
    left = [
        tmp_path / ".tmp-1-data.jsonl",
        tmp_path / "shards/KEY/.tmp-2-00001.jsonl",
        tmp_path / "shards/KEY/00001/.tmp-3-chunk",
    ]
    kept = [tmp_path / "data.jsonl", tmp_path / "shards/KEY/00001/chunk-1.jsonl"]
    for path in left + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with output_lock(str(tmp_path)):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)
