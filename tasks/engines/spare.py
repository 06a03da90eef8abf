"""A worker process started ahead of its run: it imports vLLM while Prefect and the dataset are being made ready.

Only for one engine on the CPU of this machine, where that is a third of the start; which GPUs an engine gets is known
later, and is an environment variable of its process. A run that finds all finished has no use for it, and it is ended.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.config import GenerateConfig
from tasks.engines.devices import visible_gpus
from tasks.engines.vllm_args import cpu_environment
from tasks.engines.worker_process import AHEAD, WORKER, base_environment
from tasks.run_log import log_folder
from tasks.storage import is_remote

_spare: subprocess.Popen[bytes] | None = None


def start_ahead(config: GenerateConfig) -> None:
    """Start the worker of the run's only engine, if it looks as if the run will need it."""
    global _spare
    if _spare is not None or not _needed(config):
        return
    path = log_folder(config.output.path) / "engine-0.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # the run will say what is wrong with its output folder
    with path.open("ab") as log:
        _spare = subprocess.Popen(
            [*WORKER, AHEAD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**base_environment(config), **cpu_environment(config.engine)},
            start_new_session=True,
        )


def take(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """The waiting worker, if it is what the command would start; it is the caller's from now on."""
    global _spare
    one_of_many = environment.get("OMP_NUM_THREADS") != os.environ.get("OMP_NUM_THREADS")
    if _spare is None or tuple(command) != WORKER or one_of_many or _spare.poll() is not None:
        return None
    process, _spare = _spare, None
    return process


def discard() -> None:
    """End the worker if nobody took it."""
    global _spare
    if _spare is not None:
        _spare.kill()
        _spare.communicate()
        _spare = None


def _needed(config: GenerateConfig) -> bool:
    engine, output = config.engine, config.output.path
    here = (engine.kind, engine.pool) == ("vllm", "local") and engine.replicas in (None, 1) and not is_remote(output)
    return here and not visible_gpus() and not Path(output, "manifest.json").exists()
