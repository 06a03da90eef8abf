"""Downloads in processes of their own, to be killed and to run beside each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tasks.config import ModelConfig

# Below the task, whose Prefect takes seconds to import.
_CODE = """
import logging, sys
logging.basicConfig(level=sys.argv[2])
from tasks.config import ModelConfig
from tasks.downloads.hub import download_from_hub
from tasks.downloads.s3 import mirror_from_s3
config = ModelConfig.model_validate_json(sys.argv[1])
download = mirror_from_s3 if config.source.startswith("s3://") else download_from_hub
print(download(config, False).path)
"""


def start(config: ModelConfig, level: str = "INFO", **environment: str) -> subprocess.Popen[str]:
    """Start a download; its output is the model's path, its errors the log."""
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, config.model_dump_json(), level],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Wait until it holds, while the process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def aria2c_below(folder: Path) -> list[int]:
    """The aria2c processes that work in folders below this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == "aria2c" and (process / "cwd").readlink().is_relative_to(
                folder
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found
