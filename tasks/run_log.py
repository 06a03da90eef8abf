"""The run's log: on the command line a file, with Prefect's chatter; under a Prefect worker the run's own logs."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from pathlib import Path

from tasks.storage import is_remote

log = logging.getLogger("datagen")
log.setLevel(logging.INFO)


def log_folder(output_path: str) -> Path:
    """Where logs of a run lie: in the output folder, or for a remote one in the user's state folder."""
    if not is_remote(output_path):
        return Path(output_path.removeprefix("file://")).expanduser().absolute() / "logs"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "datagen-flow", hashlib.sha256(output_path.encode()).hexdigest()[:12])


def log_to_file(output_path: str) -> Path:
    """Send all logging to run.log, and our own warnings to the terminal too. Returns the file.

    A root handler that is there when Prefect sets up its logging keeps Prefect's off the console.
    """
    path = log_folder(output_path) / "run.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) is no reason for tracebacks
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(to_file)
    root.setLevel(logging.INFO)
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(to_terminal)
    return path
